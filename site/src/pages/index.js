// The home page. Example, drawing and plot come from the repository by way of scripts/site.py.
import React, {useEffect, useState} from 'react';
import Link from '@docusaurus/Link';
import useDocusaurusContext from '@docusaurus/useDocusaurusContext';
import Translate, {translate} from '@docusaurus/Translate';
import CodeBlock from '@theme/CodeBlock';
import Layout from '@theme/Layout';
import home from '@site/staged/home.json';

const RUN = 5000; // ms: longer than the last dot's way

function Hero() {
  return (
    <section>
      <div className="container pair">
        <div className="hero-text">
          <h1>
            <Translate id="home.title" values={{way: <em><Translate id="home.title.way">one function</Translate></em>}}>
              {'Your models and all their steps, as {way}'}
            </Translate>
          </h1>
          <p>
            <Translate id="home.what">
              Name the steps in a small config. Get back a function that any number of threads may call. It forms batches
              across the callers and puts each answer into its own request.
            </Translate>
          </p>
          <p>
            <Translate id="home.pure">Inside PyTorch, in pure Python, with no server process of its own.</Translate>
          </p>
          <div className="ways">
            <Link className="button button--primary button--lg" to={home.first}>
              <Translate id="home.start">Five minutes</Translate>
            </Link>
          </div>
        </div>
        <div>
          <CodeBlock language="python">{home.code}</CodeBlock>
          <div className="printed">
            <CodeBlock language="text" title={translate({id: 'home.prints', message: 'It prints'})}>
              {home.printed}
            </CodeBlock>
          </div>
        </div>
      </div>
    </section>
  );
}

function Drawing() {
  const [running, setRunning] = useState(false);
  useEffect(() => {
    if (!running) return undefined;
    const timer = setTimeout(() => setRunning(false), RUN);
    return () => clearTimeout(timer);
  }, [running]);
  const label = translate({
    id: 'home.drawing.label',
    message: 'A graph of seven nodes: page, detect, lines and text; every line goes through line, orientation and recognise',
  });
  return (
    <section>
      <div className="container">
        <h2><Translate id="home.graph">Several models, one graph</Translate></h2>
        <p className="lead">
          <Translate id="home.graph.what">
            This one reads the text in pictures. Every line that it finds goes its own way, and lines of several pictures
            share a batch. torchpipe.show draws it from the configuration. Rest on a node to see its parameters.
          </Translate>
        </p>
        <button type="button" className="button button--secondary" disabled={running} onClick={() => setRunning(true)}>
          <Translate id="home.graph.run">Send a picture through it</Translate>
        </button>
        <div
          className={running ? 'drawing running' : 'drawing'}
          role="group"
          aria-label={label}
          tabIndex={0}
          dangerouslySetInnerHTML={{__html: home.graph}}
        />
      </div>
    </section>
  );
}

function Plot() {
  const {i18n} = useDocusaurusContext();
  return (
    <section>
      <div className="container pair">
        <div>
          <h2><Translate id="home.fast">Fast, and measured beside others</Translate></h2>
          <p className="lead">
            <Translate id="home.fast.what">
              Pictures to text per second with the same networks, on two cores, for one, four and eight callers. Each bar
              is the median of several runs. The figures are of the last measurement in the repository.
            </Translate>
          </p>
          <Link to="/benchmarks"><Translate id="home.fast.all">All figures, and how to repeat them</Translate></Link>
        </div>
        <div dangerouslySetInnerHTML={{__html: home.plot[i18n.currentLocale]}} />
      </div>
    </section>
  );
}

const POINTS = [
  [
    <Translate id="home.point.short">Short ways</Translate>,
    <Translate id="home.point.short.what">
      A caller that finds a free instance runs its request itself. There is no scheduler thread.
    </Translate>,
  ],
  [
    <Translate id="home.point.batches">Batches that learn</Translate>,
    <Translate id="home.point.batches.what">
      A request waits for company only where that pays. The pipe measures this all the time.
    </Translate>,
  ],
  [
    <Translate id="home.point.apart">One bad request harms nobody</Translate>,
    <Translate id="home.point.apart.what">
      A batch that fails is split until the guilty request is alone. The others get their answers.
    </Translate>,
  ],
  [
    <Translate id="home.point.early">Early, clear errors</Translate>,
    <Translate id="home.point.early.what">
      A mistake in a config is found when the pipe is built. The message offers the nearest valid name.
    </Translate>,
  ],
  [
    <Translate id="home.point.limits">Limits for real traffic</Translate>,
    <Translate id="home.point.limits.what">
      Deadlines, cancellation, overload, priorities, stuck instances, reload, health.
    </Translate>,
  ],
  [
    <Translate id="home.point.own">Your own steps in ten lines</Translate>,
    <Translate id="home.point.own.what">
      A Python function from data to result is a backend. Its type hints check the parameters.
    </Translate>,
  ],
];

export default function Home() {
  const description = translate({
    id: 'home.description',
    message: 'Serving inside PyTorch with many threads: from a small config to one thread-safe function.',
  });
  return (
    <Layout description={description}>
      <main className="home">
        <Hero />
        <Drawing />
        <Plot />
        <section>
          <div className="container">
            <h2><Translate id="home.points">What you get</Translate></h2>
            <ul className="points">
              {POINTS.map(([head, text]) => (
                <li key={head.props.id}>
                  <h3>{head}</h3>
                  <p>{text}</p>
                </li>
              ))}
            </ul>
          </div>
        </section>
      </main>
    </Layout>
  );
}

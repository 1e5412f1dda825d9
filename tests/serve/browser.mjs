// Uses the page of a running server in a real Chromium: node browser.mjs FOLDER < questions, answers on stdout, as JSON.
// tests/serve/test_start_page_in_browser.py asks and judges. It is run in site/, whose packages it takes.
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';

const require = createRequire(`${process.cwd()}/package.json`);
const puppeteer = require('puppeteer-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const folder = process.argv[2];
const asked = JSON.parse(readFileSync(0, 'utf8'));
const browser = await puppeteer.launch({
  executablePath: asked.chromium,
  headless: true,
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', `--user-data-dir=${folder}/profile`,
  ],
});

async function opened({address, theme = 'light', width = 1280, language = 'en'}) {
  const page = await browser.newPage();
  page.faults = [];
  page.requests = [];
  page.on('console', (said) => said.type() === 'error' && page.faults.push(said.text()));
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.on('dialog', async (dialog) => {
    page.faults.push(`a dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  page.on('request', (request) => page.requests.push(request.url()));
  await page.setViewport({width, height: 900});
  await page.setExtraHTTPHeaders({'accept-language': language});
  await page.emulateMediaFeatures([{name: 'prefers-color-scheme', value: theme}]);
  await page.goto(address, {waitUntil: 'networkidle0', timeout: 30000});
  return page;
}

// What can be done to a page. `form` is a selector.
const steps = {
  choose: (page, {form, kind}) => page.click(`${form} [name=kind][value=${kind}]`),
  file: async (page, {form, path}) => (await page.$(`${form} [name=file]`)).uploadFile(path),
  text: (page, {form, name = 'text', text}) =>
    page.$eval(`${form} [name=${name}]`, (field) => (field.value = '')).then(() => page.type(`${form} [name=${name}]`, text)),
  click: (page, {form, what = '.send'}) => page.click(`${form} ${what}`),
  press: async (page, {keys}) => {
    for (const key of keys) await page.keyboard.press(key);
  },
  wait: (page, {form, words}) =>
    page.waitForFunction(
      (form, words) => document.querySelector(`${form} .outcome`)?.textContent.includes(words), {timeout: 20000}, form, words,
    ),
  settle: (page, {form}) => page.waitForSelector(`${form} .send:not([aria-disabled])`, {timeout: 20000}),
  appears: (page, {what}) => page.waitForSelector(what, {timeout: 20000}),
  shot: (page, {name}) => page.screenshot({path: `${folder}/${name}.png`, fullPage: true}),
};

async function axed(page) {
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const {violations} = await window.axe.run(document, {resultTypes: ['violations']});
    return violations.map(({id, nodes}) => `${id}: ${nodes.slice(0, 4).map((node) => node.html.slice(0, 160)).join(' | ')}`);
  });
}

const answers = [];
for (const visit of asked.visits) {
  const page = await opened(visit);
  const answer = {};
  try {
    for (const [name, options] of visit.steps || []) await steps[name](page, options);
  } catch (error) {
    answer.error = String(error);
    await page.screenshot({path: `${folder}/failed.png`, fullPage: true});
  }
  Object.assign(answer, await page.evaluate(() => ({
    text: document.body.innerText,
    outcomes: [...document.querySelectorAll('.outcome')].map((one) => one.textContent).filter(Boolean),
    answers: [...document.querySelectorAll('.answer:not([hidden])')].map((one) => one.textContent),
    commands: [...document.querySelectorAll('.curl')].map((one) => one.textContent),
    preview: [...document.querySelectorAll('.preview:not([hidden])')].map((one) => one.naturalWidth),
    nodes: [...document.querySelectorAll('svg .name')].map((one) => one.textContent),
    language: document.documentElement.lang,
    wide: document.documentElement.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    focus: document.activeElement.className || document.activeElement.name || document.activeElement.tagName,
  })));
  answer.faults = page.faults;
  answer.requests = page.requests;
  if (visit.axe) answer.axe = await axed(page);
  answers.push(answer);
  await page.close();
}
await browser.close();
console.log(JSON.stringify(answers));

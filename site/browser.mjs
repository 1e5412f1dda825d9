// Looks at the built site in a real Chromium: node browser.mjs ADDRESS FOLDER < questions, answers on stdout, as JSON.
// tests/docs/test_site.py asks and judges.
import {readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import puppeteer from 'puppeteer-core';

const [address, folder] = process.argv.slice(2);
const asked = JSON.parse(readFileSync(0, 'utf8'));
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await puppeteer.launch({
  executablePath: asked.chromium,
  headless: true,
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', `--user-data-dir=${folder}/profile`,
  ],
});
await browser.defaultBrowserContext().overridePermissions(address, ['clipboard-read', 'clipboard-sanitized-write']);

async function opened(path, {width = 1280, height = 900, theme = 'light'} = {}) {
  const page = await browser.newPage();
  page.faults = [];
  page.on('console', (said) => said.type() === 'error' && page.faults.push(said.text()));
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.on('response', (got) => got.status() >= 400 && page.faults.push(`${got.status()} ${got.url()}`));
  await page.setViewport({width, height});
  await page.emulateMediaFeatures([{name: 'prefers-color-scheme', value: theme}]);
  await page.goto(address + path, {waitUntil: 'networkidle0', timeout: 30000});
  return page;
}

const diagrams = (page) =>
  page.evaluate(() => document.querySelectorAll('.docusaurus-mermaid-container svg').length);

async function drawn(page, count) {
  for (let tries = 0; tries < 50 && (await diagrams(page)) < count; tries++) await new Promise((r) => setTimeout(r, 100));
  return diagrams(page);
}

async function contrast(page) {
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const {violations} = await window.axe.run(document, {resultTypes: ['violations']});
    return violations
      .filter(({impact}) => impact === 'serious' || impact === 'critical')
      .map(({id, nodes}) => `${id}: ${nodes.slice(0, 4).map((node) => node.html.slice(0, 160)).join(' | ')} (${nodes.length})`);
  });
}

const answers = {pages: {}, search: [], axe: {}};
for (const {path, diagrams: count, other} of asked.pages) {
  const page = await opened(path);
  const shown = await drawn(page, count);
  const links = await page.$$eval('.navbar .dropdown__link', (all) => all.map((a) => a.getAttribute('href')));
  answers.pages[path] = {faults: page.faults, diagrams: shown, switches: links.includes(other), axe: await contrast(page)};
  await page.close();
}

for (const {path, theme, width} of asked.axe) {
  const page = await opened(path, {theme, width});
  answers.axe[`${path} ${theme} ${width}`] = await contrast(page);
  await page.close();
}

for (const {path, words} of asked.search) {
  const page = await opened(path);
  await page.click('.navbar__search-input');
  await page.type('.navbar__search-input', words, {delay: 20});
  const found = '.navbar__search [class*="suggestion"]';
  await page.waitForSelector(found, {timeout: 15000}).catch(() => {});
  await new Promise((r) => setTimeout(r, 600));
  await page.screenshot({path: `${folder}/search-${answers.search.length}.png`});
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await page.waitForFunction((from) => location.pathname !== from, {timeout: 10000}, path).catch(() => {});
  await new Promise((r) => setTimeout(r, 300));
  answers.search.push(await page.evaluate(() => ({at: location.pathname, text: document.body.innerText})));
  answers.search.at(-1).faults = page.faults;
  await page.close();
}

{
  const page = await opened(asked.copy);
  const button = 'article .theme-code-block button[aria-label^="Copy"]';
  await page.$eval(button, (it) => it.scrollIntoView({block: 'center'})); // not below the bar at the top
  await new Promise((r) => setTimeout(r, 500)); // it may scroll smoothly
  await page.click(button);
  await new Promise((r) => setTimeout(r, 300));
  answers.copied = await page.evaluate(() => navigator.clipboard.readText());
  await page.close();
}

{
  const page = await opened(asked.switch.from);
  await page.hover('.navbar .dropdown');
  await page.click(`.navbar .dropdown__link[lang="${asked.switch.lang}"]`);
  await page.waitForFunction((from) => location.pathname !== from, {timeout: 10000}, asked.switch.from).catch(() => {});
  answers.switched = await page.evaluate(() => location.pathname);
  await page.close();
}

{
  const page = await opened('/');
  answers.keyboard = [];
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press('Tab');
    answers.keyboard.push(
      await page.evaluate(() => {
        const {tagName, innerText, ariaLabel, placeholder} = document.activeElement;
        return `${tagName} ${(innerText || ariaLabel || placeholder || '').slice(0, 40)}`;
      }),
    );
  }
  answers.wide = {};
  for (const width of [390, 1280]) {
    await page.setViewport({width, height: 800});
    answers.wide[width] = await page.evaluate(() => document.documentElement.scrollWidth);
  }
  await page.close();
}

{
  const context = await browser.createBrowserContext(); // without what is cached
  const page = await context.newPage();
  await page.goto(`${address}/`, {waitUntil: 'networkidle0'});
  answers.home = await page.evaluate(() => ({
    paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime,
    files: [location.pathname, ...performance.getEntriesByType('resource').map(({name}) => new URL(name).pathname)],
    prefetched: [...document.querySelectorAll('link[rel=prefetch]')].map(({href}) => new URL(href).pathname),
  }));
  await context.close();
}

for (const {path, name, theme, width} of asked.shots) {
  const page = await opened(path, {theme, width, height: width < 600 ? 844 : 900});
  await drawn(page, asked.pages.find((one) => one.path === path)?.diagrams || 0);
  if (name.startsWith('diagram')) {
    await page.evaluate(() => document.querySelector('.docusaurus-mermaid-container')?.scrollIntoView({block: 'center'}));
  }
  await page.screenshot({path: `${folder}/${name}-${theme}-${width}.png`, fullPage: name.startsWith('home')});
  await page.close();
}
await browser.close();
console.log(JSON.stringify(answers));

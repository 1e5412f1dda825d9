// Sends what a form holds to its model, and shows the answer; and asks for the token, where there is one.
'use strict';

const LONGEST = 200000; // characters of an answer that are shown
const words = document.body.dataset;
let token = ''; // nowhere but here: it is gone when the page is left
const running = new WeakMap(); // by form: what stops its call

const authorized = () => (token ? {Authorization: `Bearer ${token}`} : {});

function kindOf(form) {
  return form.querySelector('[name=kind]:checked').value;
}

function requestOf(form) {
  const {file, text, json} = form.elements;
  const kind = kindOf(form);
  if (kind === 'file') {
    const chosen = file.files[0];
    const type = chosen.type.startsWith('image/') ? chosen.type : 'application/octet-stream';
    return {body: chosen, headers: {'Content-Type': type}};
  }
  let body = json.value;
  if (kind === 'text') {
    const request = JSON.parse(json.defaultValue);
    request.inputs[0].data = [text.value];
    body = JSON.stringify(request);
  }
  return {body, headers: {'Content-Type': 'application/json'}};
}

// JSON with line breaks, its numbers as they came: JSON.parse would round those beyond 2 ** 53.
function spread(text) {
  const token = /"(?:[^"\\]|\\.)*"|[^\s{}[\],:"]+|[{}[\],:]/g;
  const tokens = text.match(token) || [];
  let out = '';
  let depth = 0;
  const flat = []; // for each open bracket: whether it is a list that holds no other
  const line = () => '\n' + '  '.repeat(depth);
  tokens.forEach((one, i) => {
    if (one === '{' || one === '[') {
      let end = i + 1;
      while (end < tokens.length && !'{}[]'.includes(tokens[end])) end++;
      flat.push(tokens[end] === ']' ? one === '[' : end === i + 1 && tokens[end] === '}');
      depth++;
      out += one + (flat.at(-1) ? '' : line());
    } else if (one === '}' || one === ']') {
      depth--;
      out += (flat.pop() ? '' : line()) + one;
    } else if (one === ',') {
      out += flat.at(-1) ? ', ' : ',' + line();
    } else {
      out += one === ':' ? ': ' : one[0] === '"' ? JSON.stringify(JSON.parse(one)) : one;
    }
  });
  return out;
}

function shown(text, type) {
  if (!/^(application\/json|text\/)/.test(type)) return null;
  const json = type.startsWith('application/json') && text.length <= LONGEST;
  const whole = json ? spread(text) : text;
  const more = whole.length - LONGEST;
  return more > 0 ? `${whole.slice(0, LONGEST)}\n… ${more} ${words.cut}` : whole;
}

function tell(form, text, failed) {
  const outcome = form.querySelector('.outcome');
  outcome.textContent = text;
  outcome.classList.toggle('failed', failed);
}

async function send(form) {
  const [button, stop, answer] = ['.send', '.stop', '.answer'].map((one) => form.querySelector(one));
  if (running.has(form)) return;
  const call = new AbortController();
  running.set(form, call);
  button.setAttribute('aria-disabled', 'true'); // a disabled one would lose the keyboard's focus
  stop.hidden = false;
  answer.hidden = true;
  tell(form, words.sending, false);
  const start = performance.now();
  try {
    const {body, headers} = requestOf(form);
    const response = await fetch(form.dataset.path, {
      method: 'POST', body, headers: {...headers, ...authorized()}, signal: call.signal,
    });
    const bytes = await response.arrayBuffer();
    const took = (performance.now() - start).toFixed(1);
    const type = response.headers.get('content-type') || '';
    const text = shown(new TextDecoder().decode(bytes), type);
    answer.textContent = text === null ? `${bytes.byteLength} ${words.bytes}` : text;
    answer.hidden = false;
    tell(form, `${response.status} ${response.statusText} · ${took} ms`, !response.ok);
  } catch (error) {
    tell(form, error.name === 'AbortError' ? words.stopped : `${words.silent} ${error.message}`, true);
  }
  if (document.activeElement === stop) button.focus();
  stop.hidden = true;
  button.removeAttribute('aria-disabled');
  running.delete(form);
}

function showCommand(form) {
  const kind = kindOf(form);
  const address = new URL(form.dataset.path, document.baseURI).href.replaceAll("'", '%27');
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const parts = ['curl'];
  if (token) parts.push("-H 'Authorization: Bearer TOKEN'");
  if (kind === 'file') {
    const chosen = form.elements.file.files[0];
    parts.push('-H Content-Type:application/octet-stream', '--data-binary', quoted(`@${chosen ? chosen.name : 'FILE'}`));
  } else {
    parts.push('-H Content-Type:application/json', '--data-binary', quoted(requestOf(form).body));
  }
  form.querySelector('.curl').textContent = [...parts, quoted(address)].join(' ');
}

function choose(form) {
  const kind = kindOf(form);
  for (const field of form.querySelectorAll('.field')) field.hidden = field.dataset.kind !== kind;
  const {file} = form.elements;
  file.required = kind === 'file';
  const preview = form.querySelector('.preview');
  if (preview.src) URL.revokeObjectURL(preview.src);
  const image = kind === 'file' && file.files[0] && file.files[0].type.startsWith('image/');
  preview.hidden = !image;
  if (image) preview.src = URL.createObjectURL(file.files[0]);
  else preview.removeAttribute('src');
  showCommand(form);
}

async function enter(form) {
  token = form.elements.token.value.trim();
  try {
    const response = await fetch(document.URL.split('#')[0], {headers: authorized()});
    const text = await response.text();
    if (!response.ok) {
      token = '';
      tell(form, JSON.parse(text).error, true);
      return;
    }
    const page = new DOMParser().parseFromString(text, 'text/html');
    for (const one of ['h1', 'nav', 'main']) document.querySelector(one).replaceWith(page.querySelector(one));
    start();
  } catch (error) {
    token = '';
    tell(form, `${words.silent} ${error.message}`, true);
  }
}

function start() {
  for (const form of document.querySelectorAll('form.try')) choose(form);
}

document.addEventListener('submit', (event) => {
  event.preventDefault();
  if (event.target.matches('form.try')) send(event.target);
  else enter(event.target);
});
document.addEventListener('input', ({target}) => {
  const form = target.closest('form.try');
  if (!form) return;
  if (target.name === 'kind' || target.name === 'file') choose(form);
  else showCommand(form);
});
document.addEventListener('click', ({target}) => {
  if (target.matches('.stop')) running.get(target.form)?.abort();
});
start();

// The playground: a conversation of streamed runs. One run is active at a time, and its events are shown live.
// External text (answers, events, errors, model names) enters the page only as text nodes.

import { Failure, apiKey, cancelRun, isRunId, storeApiKey, modelNames, startRun } from "./api.js";
import { byId, now } from "./dom.js";
import { Exchange } from "./exchange.js";
import { followRun } from "./run_stream.js";
import * as storage from "./storage.js";
import { asCurl, asPython } from "./snippets.js";

const SAVE_MS = 2000; // interval of saves during a run; leaving the page saves too

let exchanges = [];
let running = null; // { exchange, controller, stopping } of the active run
let exchangeAwaitingKey = null; // the exchange that waits for a key

/** Return the messages of the request for an exchange: the complete exchanges before it, then its question. */
function messagesUpTo(exchange) {
  const earlier = exchanges.slice(0, exchanges.indexOf(exchange)).filter((other) => other.inHistory);
  const history = earlier.flatMap(({ question, text }) => [
    { role: "user", content: question },
    { role: "assistant", content: text },
  ]);
  return [...history, { role: "user", content: exchange.question }];
}

async function ask(question) {
  const model = byId("model").value.trim() || byId("model").placeholder || (await loadModels());
  if (!model || running) return;
  byId("prompt").value = "";
  closeAccess();
  byId("spoken").replaceChildren();
  const exchange = add(new Exchange({ question, model, startedAt: now() }));
  window.scrollTo(0, document.documentElement.scrollHeight);
  await run(exchange, (signal) => startRun({ model, messages: messagesUpTo(exchange) }, signal));
}

/** Add an exchange to the conversation. */
function add(exchange) {
  exchanges.push(exchange);
  byId("welcome").hidden = true;
  byId("restart").disabled = false;
  exchange.part("curl").addEventListener("click", () => copy(snippet(asCurl, exchange), "The curl command"));
  exchange.part("python").addEventListener("click", () => copy(snippet(asPython, exchange), "The Python program"));
  for (const name of ["curl", "python"]) exchange.part(name).hidden = exchange.question === null;
  exchange.part("copy-link").addEventListener("click", () => copy(exchange.part("link").href, "The link"));
  exchange.started.then(() => {
    history.replaceState(null, "", `#run=${exchange.runId}`);
    save();
  });
  return exchange;
}

/** Follow a run to its end. `start` starts it; without `start`, resume after the cursor of the exchange. */
async function run(exchange, start = null) {
  const controller = new AbortController();
  setRunning({ exchange, controller, stopping: false });
  const saving = setInterval(save, SAVE_MS);
  const key = apiKey();
  let unlocked = false; // the user entered a key while the request without a key was in flight
  try {
    await followRun(exchange, start && (await start(controller.signal)), controller.signal);
  } catch (error) {
    controller.abort(); // closes a stream that failed halfway
    fail(exchange, error);
    unlocked = exchangeAwaitingKey === exchange && apiKey() !== key;
  } finally {
    clearInterval(saving);
    setRunning(null);
    save();
  }
  if (unlocked) await resumeWithKey();
}

/** Resume the run that waits for a key. */
async function resumeWithKey() {
  const exchange = exchangeAwaitingKey;
  if (!exchange || running) return;
  exchangeAwaitingKey = null;
  closeAccess();
  exchange.resume();
  await run(exchange);
}

function fail(exchange, error) {
  const message = error instanceof Failure ? error.message : `This page has an error: ${error.message}`;
  if (exchange.runId) {
    const gone = error.status === 404 || error.status === 410;
    exchange.suspend(gone ? message : `${message} The run may still continue. Reload the page to check.`);
    if (error.status === 401) exchangeAwaitingKey = exchange;
  } else {
    exchange.apply({ kind: "failed", message }, now());
    if (!byId("prompt").value) byId("prompt").value = exchange.question;
  }
  if (error.status === 401) askForKey();
  if (!(error instanceof Failure)) throw error;
}

/** Cancel the active run. Its stream then reports the end. */
async function stop() {
  const stopped = running;
  if (!stopped || stopped.stopping) return;
  stopped.stopping = true;
  byId("stop").textContent = "Stopping …";
  try {
    await stopped.exchange.started;
    await cancelRun(stopped.exchange.runId);
  } catch (error) {
    if (running !== stopped) return; // the run has ended by itself
    notice(`The run could not be stopped: ${error.message}`);
    stopped.stopping = false;
    byId("stop").textContent = "Stop";
  }
}

function setRunning(next) {
  const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
  byId("status").textContent = next ? "The agent is working." : "The reply has ended.";
  running = next;
  byId("stop").textContent = "Stop";
  byId("stop").hidden = !next;
  byId("send").hidden = Boolean(next);
  byId("restart").disabled = Boolean(next) || exchanges.length === 0;
  if (hadFocus) (next ? byId("stop") : byId("prompt")).focus();
}

const save = () => storage.save(exchanges.map((exchange) => exchange.record()));

// Copying

function snippet(form, exchange) {
  const base = new URL("v1", document.baseURI).href;
  return form({ model: exchange.model, messages: messagesUpTo(exchange) }, base, apiKey() !== "");
}

/** Copy a text to the clipboard. If the browser forbids this, show the text so that the user can copy it. */
async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
    byId("status").textContent = `${name} was copied.`;
    byId("toast").textContent = `${name} was copied.`;
    setTimeout(() => (byId("toast").textContent = ""), 2500);
  } catch {
    byId("copy-text").value = text;
    byId("copy-by-hand").showModal();
    byId("copy-text").select();
  }
}

// Keys and models

function askForKey() {
  byId("access").open = true;
  notice("This server needs an API key.", byId("key"));
}

/**
 * Close the key field and focus the message field. Do not call this while the user may be typing a key: the rest of the
 * key would go into the message.
 */
function closeAccess() {
  if (byId("access").open) byId("prompt").focus();
  byId("access").open = false;
  notice("");
}

function notice(text, field) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
  field?.focus();
}

/** Load the names of the models. An empty model field means the first name, which is returned ("" if there is none). */
async function loadModels() {
  try {
    const names = await modelNames();
    byId("models").replaceChildren(...names.map((name) => new Option(name, name)));
    byId("model").placeholder = names[0] ?? "";
    notice(names.length ? "" : "The server lists no models. Enter a model name.");
    return byId("model").placeholder;
  } catch (error) {
    if (error.status === 401) askForKey();
    else notice(`The list of models could not be loaded. Enter a model name. ${error.message}`);
    return "";
  }
}

// Restoring earlier runs

/** Show the run in the URL fragment, unless the page shows it already. */
async function openFragment() {
  const runId = new URLSearchParams(location.hash.slice(1)).get("run");
  if (!runId || exchanges.some((exchange) => exchange.runId === runId)) return;
  if (!isRunId(runId)) notice("The link contains no valid run id. A run id is chatcmpl- and 32 hexadecimal digits.");
  else if (running) notice("Another run is active in this tab. Open the link in a new tab.");
  else await run(add(new Exchange({ runId })));
}

async function begin() {
  byId("key").value = apiKey();
  const models = loadModels();
  const linked = location.hash;
  for (const record of storage.load()) add(Exchange.restored(record));
  await Promise.resolve(); // by now, each exchange with a run id has put its id into the URL
  if (linked) history.replaceState(null, "", linked);
  for (const exchange of exchanges) {
    if (!exchange.ended && exchange.runId) await run(exchange);
    else if (!exchange.ended) exchange.apply({ kind: "failed", message: "You left the page before the run started." }, null);
  }
  await models; // a notice of loadModels must not replace a notice of openFragment
  await openFragment();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("prompt").value.trim();
  if (question && !running) ask(question);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !byId("copy-by-hand").open) stop();
});
byId("stop").addEventListener("click", stop);
byId("restart").addEventListener("click", () => {
  for (const exchange of exchanges) exchange.root.remove();
  exchanges = [];
  exchangeAwaitingKey = null;
  save();
  history.replaceState(null, "", location.pathname + location.search);
  byId("welcome").hidden = false;
  byId("restart").disabled = true;
  byId("prompt").focus();
});
byId("key").addEventListener("change", async () => {
  storeApiKey(byId("key").value.trim());
  await loadModels();
  await resumeWithKey();
});
window.addEventListener("hashchange", openFragment);
window.addEventListener("pagehide", save);
begin();

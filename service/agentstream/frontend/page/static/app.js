// The playground: a conversation of streamed runs, one at a time, each with what its agent does shown as it happens.
// Text from outside (answers, events, errors, model names) enters the page as text nodes only.

import { Failure, apiKey, cancelRun, isRunId, storeApiKey, modelNames, startRun } from "./api.js";
import { byId, now } from "./dom.js";
import { Exchange } from "./exchange.js";
import { followRun } from "./run_stream.js";
import * as storage from "./storage.js";
import { asCurl, asPython } from "./snippets.js";

const SAVE_MS = 2000; // how often a running exchange is saved; leaving the page saves it too

let exchanges = [];
let running = null; // { exchange, controller, stopping } of the run under way
let exchangeAwaitingKey = null; // the exchange that waits for a key

/** The messages of a request that asks an exchange's question: whole exchanges before it go along. */
function messagesUpTo(exchange) {
  const earlier = exchanges.slice(0, exchanges.indexOf(exchange)).filter((other) => other.inHistory);
  const said = earlier.flatMap(({ question, text }) => [
    { role: "user", content: question },
    { role: "assistant", content: text },
  ]);
  return [...said, { role: "user", content: exchange.question }];
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

/** Show an exchange as part of the conversation. */
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

/** Follow a run to its end: begun by `start`, or taken up again where the exchange is. */
async function run(exchange, start = null) {
  const controller = new AbortController();
  setRunning({ exchange, controller, stopping: false });
  const saving = setInterval(save, SAVE_MS);
  const key = apiKey();
  let unlocked = false; // the key was entered while the request without it was under way
  try {
    await followRun(exchange, start && (await start(controller.signal)), controller.signal);
  } catch (error) {
    controller.abort(); // lets go of a stream that failed half-way
    fail(exchange, error);
    unlocked = exchangeAwaitingKey === exchange && apiKey() !== key;
  } finally {
    clearInterval(saving);
    setRunning(null);
    save();
  }
  if (unlocked) await resumeWithKey();
}

/** Go on with the run that waited for a key. */
async function resumeWithKey() {
  const exchange = exchangeAwaitingKey;
  if (!exchange || running) return;
  exchangeAwaitingKey = null;
  closeAccess();
  exchange.resume();
  await run(exchange);
}

function fail(exchange, error) {
  const told = error instanceof Failure ? error.message : `The page itself failed: ${error.message}`;
  if (exchange.runId) {
    const gone = error.status === 404 || error.status === 410;
    exchange.suspend(gone ? told : `${told} Whether the run goes on is not known; reload the page to look again.`);
    if (error.status === 401) exchangeAwaitingKey = exchange;
  } else {
    exchange.apply({ kind: "failed", message: told }, now());
    if (!byId("prompt").value) byId("prompt").value = exchange.question;
  }
  if (error.status === 401) askForKey();
  if (!(error instanceof Failure)) throw error;
}

/** End the run under way; its stream then tells how it ended. */
async function stop() {
  const stopped = running;
  if (!stopped || stopped.stopping) return;
  stopped.stopping = true;
  byId("stop").textContent = "Stopping …";
  try {
    await stopped.exchange.started;
    await cancelRun(stopped.exchange.runId);
  } catch (error) {
    if (running !== stopped) return; // it ended meanwhile
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

/** Copy a text; where the page may not, show it to be copied by hand. */
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

/** Put the key's field away; never while somebody may be typing: the rest of a key would stand in the message. */
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

/** Offer the server's models; an empty field means the first one, whose name is returned ("" if there is none). */
async function loadModels() {
  try {
    const names = await modelNames();
    byId("models").replaceChildren(...names.map((name) => new Option(name, name)));
    byId("model").placeholder = names[0] ?? "";
    notice(names.length ? "" : "The server lists no models: enter a model name.");
    return byId("model").placeholder;
  } catch (error) {
    if (error.status === 401) askForKey();
    else notice(`The list of models could not be loaded: enter a model name. ${error.message}`);
    return "";
  }
}

// Taking up what was there before

/** Show the run that the address names, unless it is shown already. */
async function openFragment() {
  const runId = new URLSearchParams(location.hash.slice(1)).get("run");
  if (!runId || exchanges.some((exchange) => exchange.runId === runId)) return;
  if (!isRunId(runId)) notice("The address names no run: a run's id is chatcmpl- and 32 digits.");
  else if (running) notice("Another run is under way here: open the link in a new tab.");
  else await run(add(new Exchange({ runId })));
}

async function begin() {
  byId("key").value = apiKey();
  const models = loadModels();
  const linked = location.hash;
  for (const record of storage.load()) add(Exchange.restored(record));
  await Promise.resolve(); // each exchange whose run is known has put it into the address
  if (linked) history.replaceState(null, "", linked);
  for (const exchange of exchanges) {
    if (!exchange.ended && exchange.runId) await run(exchange);
    else if (!exchange.ended) exchange.apply({ kind: "failed", message: "The page was left before the run began." }, null);
  }
  await models; // its notice would take the place of the next
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

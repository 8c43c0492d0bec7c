// The playground: a conversation of streamed runs. One run is active at a time, and its events are shown live.
// External text (answers, events, errors, model names) enters the page only as text nodes.

import { askForKey, closeAccess, watchKey } from "./access.js";
import { apiKey, cancelRun, isRunId, sendInput, startRun } from "./api.js";
import { copy } from "./clipboard.js";
import { draft, followKeyboard, setDraft, showRunning, watchComposer } from "./composer.js";
import { byId, now } from "./dom.js";
import { editQuestion } from "./editing.js";
import { Exchange } from "./exchange.js";
import { Failure } from "./failures.js";
import { chosenModel, loadModels } from "./models.js";
import { notice } from "./notice.js";
import { followRun } from "./run_stream.js";
import { asCurl, asPython } from "./snippets.js";
import * as storage from "./storage.js";
import { showExamples } from "./welcome.js";

const SAVE_MS = 2000; // interval of saves during a run; leaving the page saves too

let exchanges = [];
let running = null; // { exchange, controller, stopping } of the active run
let sending = false; // a message to the active run is on its way
let exchangeAwaitingKey = null; // the exchange that waits for a key

const save = () => storage.saveChat(exchanges.map((exchange) => exchange.record()));

/** Return the messages of the request for an exchange: the complete exchanges before it, then its question. */
function messagesUpTo(exchange) {
  const earlier = exchanges.slice(0, exchanges.indexOf(exchange)).filter((other) => other.inHistory);
  const history = earlier.flatMap((other) => other.turns);
  return [...history, { role: "user", content: exchange.question }];
}

// Runs

/** Ask the chosen agent. `instead` is an exchange that the new one replaces, with those after it. */
async function ask(question, instead = null) {
  if (running || !question) return;
  const model = chosenModel() || (await loadModels(askForKey));
  if (!model || running) return;
  if (instead) {
    removeFrom(instead);
    byId("send").focus(); // the focus was on a removed button
  } else if (draft() === question) setDraft("");
  closeAccess();
  byId("spoken").replaceChildren();
  const exchange = add(new Exchange({ question, model, startedAt: now() }));
  window.scrollTo(0, document.documentElement.scrollHeight);
  await run(exchange, (signal) => startRun({ model, messages: messagesUpTo(exchange) }, signal));
}

/** Send the text of the field: to the active run if there is one, or else as a new question. */
async function send() {
  const text = draft();
  if (!running) await ask(text);
  else if (text) await sendToRun(running.exchange, text);
}

/** Send a message to the active run. If the agent does not take it, the text stays in the field. */
async function sendToRun(exchange, text) {
  if (exchange.parked) {
    notice("The agent waits for your answer to its question.", "input");
    exchange.people.focusQuestion();
  } else if (!exchange.runId || sending) {
    notice("Wait a moment: the run has not started yet.", "input");
  } else {
    sending = true;
    try {
      exchange.noteSent(await sendInput(exchange.runId, text), text);
      if (draft() === text) setDraft("");
      notice("", "input");
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      notice(`${error.message} ${error.reason}`, "input");
    } finally {
      sending = false;
    }
  }
}

/** Add an exchange to the conversation. */
function add(exchange) {
  exchanges.push(exchange);
  byId("welcome").hidden = true;
  byId("restart").disabled = false;
  const onClick = (name, act) => exchange.part(name).addEventListener("click", act);
  onClick("copy", () => copy(exchange.text, "The answer"));
  onClick("retry", () => retry(exchange));
  onClick("edit", () => edit(exchange));
  onClick("more", () => toggleDetails(exchange));
  onClick("ask-unread", () => ask(exchange.unappliedText));
  onClick("curl", () => copy(snippet(asCurl, exchange), "The curl command"));
  onClick("python", () => copy(snippet(asPython, exchange), "The Python program"));
  onClick("copy-link", () => copy(exchange.part("link").href, "The link"));
  exchange.started.then(() => {
    if (running?.exchange !== exchange) return; // Safari allows 100 changes of the URL in 30 s, so restored runs make none
    history.replaceState(null, "", `#run=${exchange.runId}`);
    save();
  });
  return exchange;
}

function removeFrom(exchange) {
  for (const removed of exchanges.splice(exchanges.indexOf(exchange))) removed.remove();
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

async function resume(exchange) {
  exchange.resume();
  await run(exchange);
}

/** Resume the run that waits for a key. */
async function resumeWithKey() {
  const exchange = exchangeAwaitingKey;
  if (!exchange || running) return;
  exchangeAwaitingKey = null;
  closeAccess();
  await resume(exchange);
}

function fail(exchange, error) {
  const isOurs = !(error instanceof Failure);
  const problem = isOurs ? { message: "This page has an error.", reason: String(error.message) } : error;
  if (exchange.runId) {
    exchange.gone = error.status === 404 || error.status === 410;
    const hint = exchange.gone ? "" : " The agent may still be working.";
    exchange.suspend({ message: `${problem.message}${hint}`, reason: problem.reason }, exchange.gone);
    if (error.status === 401) exchangeAwaitingKey = exchange;
  } else {
    exchange.apply({ kind: "failed", message: problem.message, reason: problem.reason }, now());
    if (!draft()) setDraft(exchange.question);
  }
  if (error.status === 401) askForKey();
  if (isOurs) throw error;
}

/** Cancel the active run. Its stream then reports the end. */
async function stop() {
  const stopped = running;
  if (!stopped || stopped.stopping) return;
  stopped.stopping = true;
  showRunning(true, true);
  byId("status").textContent = "Stopping.";
  try {
    await stopped.exchange.started;
    await cancelRun(stopped.exchange.runId);
    stopped.exchange.nudge();
  } catch (error) {
    if (running !== stopped) return; // the run has ended by itself
    notice(`The run could not be stopped. ${error.message}`);
    stopped.stopping = false;
    showRunning(true);
  }
}

function setRunning(next) {
  running = next;
  byId("status").textContent = next ? "The agent is working." : "The reply has ended.";
  document.body.classList.toggle("running", next !== null);
  showRestart();
  if (next === null) notice("", "input");
  showRunning(next !== null);
}

/** A chat whose run waits for people may be left: the run stays, and its link shows it. */
function showRestart() {
  byId("restart").disabled = (running !== null && !running.exchange.parked) || exchanges.length === 0;
}

// The buttons of an exchange

/** Follow an interrupted run again, or ask the question of an ended one again. */
async function retry(exchange) {
  if (running) return;
  if (exchange.suspended && !exchange.gone) await resume(exchange);
  else if (exchange.question !== null) await again(exchange, exchange.question);
}

function edit(exchange) {
  const isLast = exchanges[exchanges.length - 1] === exchange;
  if (!running) editQuestion(exchange, isLast, (question) => again(exchange, question));
}

/** Ask a question in the place of an exchange. */
async function again(exchange, question) {
  if (draft() === exchange.question) setDraft(""); // a failed question was put there
  await ask(question, exchange);
}

function toggleDetails(exchange) {
  const facts = exchange.part("facts");
  facts.hidden = !facts.hidden;
  exchange.part("more").setAttribute("aria-expanded", String(!facts.hidden));
  if (!facts.hidden) facts.scrollIntoView({ block: "nearest" });
}

function snippet(form, exchange) {
  const base = new URL("v1", document.baseURI).href;
  return form({ model: exchange.model, messages: messagesUpTo(exchange) }, base, apiKey() !== "");
}

function copyCode(event) {
  const code = event.target.closest(".copy-code")?.closest("figure").querySelector("code");
  if (code) copy(code.textContent, "The code");
}

// The page

/** Show the run in the URL fragment, unless the page shows it already. */
async function openFragment() {
  const runId = new URLSearchParams(location.hash.slice(1)).get("run");
  if (!runId || exchanges.some((exchange) => exchange.runId === runId)) return;
  if (!isRunId(runId)) notice("The link contains no valid run id. A run id is chatcmpl- and 32 hexadecimal digits.");
  else if (running) notice("Another run is active in this tab. Open the link in a new tab.");
  else await run(add(new Exchange({ runId })));
}

function restart() {
  running?.controller.abort(); // the run waits for people
  removeFrom(exchanges[0]);
  exchangeAwaitingKey = null;
  save();
  history.replaceState(null, "", location.pathname + location.search);
  byId("welcome").hidden = false;
  byId("restart").disabled = true;
  notice("");
  byId("prompt").focus();
}

async function begin() {
  const models = loadModels(askForKey);
  for (const record of storage.loadChat()) add(Exchange.restored(record));
  await Promise.resolve(); // by now, the promises of the restored runs have been handled
  for (const exchange of [...exchanges]) {
    if (exchange.ended) continue;
    const left = { kind: "failed", message: "You left the page before the run started.", reason: "" };
    if (exchange.runId) await run(exchange);
    else exchange.apply(left, null);
  }
  await models; // its key field must not take the focus from a link that is open
  await openFragment();
}

watchComposer(send, stop, () => running?.exchange.parked || stop());
watchKey(async () => {
  await loadModels(askForKey);
  await resumeWithKey();
});
followKeyboard();
showExamples((example) => ask(example));
byId("restart").addEventListener("click", restart);
byId("conversation").addEventListener("click", copyCode);
byId("conversation").addEventListener("parked", showRestart);
window.addEventListener("hashchange", openFragment);
window.addEventListener("pagehide", save);
begin();

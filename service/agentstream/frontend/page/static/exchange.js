// One question and its reply: applies the facts of the run, measures times and draws both.

import { byId, element, fromTemplate, isNumber, keepingBottom, now, seconds } from "./dom.js";
import { appendFact } from "./storage.js";
import { MarkdownView } from "./markdown.js";
import { Timeline } from "./timeline.js";

const CLOCK_MS = 250;
const CHARACTERS_PER_TOKEN = 4; // the server uses the same estimate; its own numbers replace ours
const MIN_TIMED_S = 0.05; // in less time, tokens per second measures the network, not the model
const DRAWING_SHARE = 8; // drawing takes at most about 1/8 of the time

/** `question` is null for a run that was started elsewhere. */
export class Exchange {
  cursor = "";
  text = "";
  ended = "";
  #facts = [];
  #reasoning = "";
  #finish = "";
  #cancelled = false;
  #usage = null;
  #firstAt = null;
  #endedAt = null;
  #drawScheduled = false;
  #unannounced = "";
  #frame = 0;
  #resolveStarted;

  /** `startedAt` is the time of the request in seconds, or null if it is unknown. */
  constructor({ question = null, model = "", runId = "", startedAt = null }) {
    Object.assign(this, { question, model, runId, startedAt });
    this.root = fromTemplate("exchange-template");
    this.started = new Promise((resolve) => (this.#resolveStarted = resolve));
    this.timeline = new Timeline(this.part("activity"), startedAt);
    this.answer = new MarkdownView(this.part("answer"));
    this.part("question").textContent = question ?? "A run that was started elsewhere";
    this.root.classList.toggle("elsewhere", question === null);
    if (runId) this.#setRunId(runId);
    byId("conversation").append(this.root);
    this.clock = setInterval(() => this.#showProgress(), CLOCK_MS);
  }

  /** Create an exchange from the value of `record()`. */
  static restored({ facts, cursor, ...record }) {
    const exchange = new Exchange(record);
    for (const { fact, at } of facts) exchange.apply(fact, at, { silently: true });
    exchange.cursor = String(cursor ?? "");
    exchange.#draw();
    return exchange;
  }

  /** Return the state to store, as a JSON value. */
  record() {
    const { question, model, runId, startedAt, cursor } = this;
    return { question, model, runId, startedAt, cursor, facts: this.#facts };
  }

  /** Whether later requests include this exchange: it needs a question and a reply. */
  get inHistory() {
    return this.question !== null && this.ended !== "" && !this.failed && (this.text !== "" || !this.#cancelled);
  }

  part(name) {
    return this.root.querySelector(`.${name}`);
  }

  /** Apply one fact. `at` is its time in seconds, or null for a replayed fact, whose time is unknown. */
  apply(fact, at, { silently = false } = {}) {
    if (this.ended) return;
    appendFact(this.#facts, fact, at);
    const say = silently || at === null ? () => {} : (text) => (byId("status").textContent = text);
    if (fact.kind === "run") this.#setRunId(fact.id);
    else if (fact.kind === "text") this.#appendText(fact.text, at, silently);
    else if (fact.kind === "reasoning") this.#appendReasoning(fact.text, at);
    else if (fact.kind === "event") keepingBottom(() => say(this.timeline.showEvent(fact.event, fact.data, at)));
    else if (fact.kind === "call") keepingBottom(() => this.timeline.showClientToolCall(fact.call, at));
    else if (fact.kind === "usage") this.#usage = fact.usage;
    else if (fact.kind === "finish") this.#finish = fact.reason;
    else if (fact.kind === "cancelled") this.#cancelled = true;
    else if (fact.kind === "failed") this.#end("with an error; later requests omit it", at, fact.message);
    else if (fact.kind === "done") this.#done(at);
  }

  /** Show a problem when following stops before the run has ended. A reload tries again. */
  suspend(problem) {
    this.showReconnecting(false);
    this.#stopClock();
    this.#showProblem(problem);
    this.#stat("ended", "unknown");
  }

  /** Remove the problem that `suspend` showed. */
  resume() {
    this.#showProblem("");
    this.#stat("ended", "running");
    this.clock ||= setInterval(() => this.#showProgress(), CLOCK_MS);
  }

  showReconnecting(is) {
    this.part("reconnecting").hidden = !is;
  }

  #setRunId(runId) {
    this.runId = runId;
    this.part("link").href = `#run=${runId}`;
    this.part("link").hidden = false;
    this.part("copy-link").hidden = false;
    this.#resolveStarted();
  }

  #appendText(text, at, silently) {
    this.#firstAt ??= at;
    this.text += text;
    if (!silently && at !== null) this.#unannounced += text;
    this.#scheduleDraw();
  }

  #appendReasoning(text, at) {
    this.#firstAt ??= at;
    this.#reasoning += text;
    this.#scheduleDraw();
  }

  /** Draw at most once per screen refresh, and less often if drawing is slow. */
  #scheduleDraw() {
    if (this.#drawScheduled) return;
    this.#drawScheduled = true;
    this.#frame = requestAnimationFrame(() => {
      const began = performance.now();
      this.#draw();
      const rest = (performance.now() - began) * (DRAWING_SHARE - 1);
      if (rest < CLOCK_MS / DRAWING_SHARE) return;
      this.#drawScheduled = true; // new text waits until the pause is over
      setTimeout(() => ((this.#drawScheduled = false), this.ended || this.#scheduleDraw()), rest);
    });
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#drawScheduled = false;
    keepingBottom(() => {
      this.part("waiting").hidden = Boolean(this.text || this.ended);
      this.part("reasoning").hidden = !this.#reasoning;
      this.part("thought").textContent = this.#reasoning;
      this.answer.show(this.text);
    });
    this.#announce(/^[^]*(?:[.!?:]\s|\n)/);
  }

  /** Give whole sentences to screen readers, which would read single tokens as fragments. */
  #announce(pattern) {
    const [ready] = this.#unannounced.match(pattern) ?? [""];
    if (!ready.trim()) return;
    this.#unannounced = this.#unannounced.slice(ready.length);
    byId("spoken").append(element("p", "", ready));
    while (byId("spoken").childElementCount > 3) byId("spoken").firstElementChild.remove();
  }

  #done(at) {
    if (this.#cancelled) this.#end("stopped", at);
    else if (this.#finish) this.#end(this.#finish, at);
    else this.#end("with an error; later requests omit it", at, "The stream ended before the answer was complete.");
  }

  #end(how, at, problem = "") {
    this.ended = how;
    this.failed = Boolean(problem);
    this.#endedAt = at;
    this.#stopClock();
    this.#draw();
    this.#announce(/^[^]+$/);
    keepingBottom(() => {
      this.part("reply").setAttribute("aria-busy", "false");
      this.timeline.close();
      this.#showProblem(problem);
      this.#stat("ended", how);
      this.#showProgress();
      this.#showUsage();
    });
  }

  #showProblem(problem) {
    this.part("failure").hidden = !problem;
    this.part("failure").textContent = problem;
  }

  #stopClock() {
    clearInterval(this.clock);
    this.clock = 0;
  }

  /** Show the current numbers: measured times, and estimated tokens until the server reports usage. */
  #showProgress() {
    const at = this.ended ? this.#endedAt : now();
    if (this.startedAt !== null && at !== null) this.#stat("time", seconds(at - this.startedAt));
    if (this.startedAt !== null && this.#firstAt !== null) this.#stat("first", seconds(this.#firstAt - this.startedAt));
    const written = Math.ceil((this.text.length + this.#reasoning.length) / CHARACTERS_PER_TOKEN);
    if (written === 0) return;
    this.#stat("tokens", `about ${written} out`);
    const writing = this.#firstAt === null || at === null ? 0 : at - this.#firstAt;
    if (writing >= MIN_TIMED_S) this.#stat("speed", `about ${(written / writing).toFixed(0)} tokens/s`);
  }

  #showUsage() {
    const { prompt_tokens: prompt, completion_tokens: completion } = this.#usage ?? {};
    if (!isNumber(prompt) || !isNumber(completion)) return;
    this.#stat("tokens", `${prompt} in, ${completion} out`);
    // Speed is over the time of the inferences, or over the whole run if the agent reports no inferences.
    const runSeconds = this.#endedAt === null || this.startedAt === null ? null : this.#endedAt - this.startedAt;
    const worked = this.timeline.inferenceSeconds === 0 ? runSeconds : this.timeline.inferenceSeconds;
    if (worked >= MIN_TIMED_S) this.#stat("speed", `${(completion / worked).toFixed(1)} tokens/s`);
  }

  #stat(name, text) {
    this.root.querySelector(`[data-stat=${name}]`).textContent = text;
  }
}

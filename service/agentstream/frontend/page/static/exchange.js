// One question and its reply: applies the facts of the run and draws both.

import { AnswerParts } from "./answer_parts.js";
import { answerRun } from "./api.js";
import { byId, clock, element, fromTemplate, isNumber, keepingPlace, now } from "./dom.js";
import { People } from "./people.js";
import { Stats } from "./stats.js";
import { appendFact } from "./storage.js";
import { Timeline } from "./timeline.js";

const CLOCK_MS = 100; // the state shows tenths of a second
const DRAWING_SHARE = 8; // drawing takes at most about 1/8 of the time
const LONG_PAUSE_MS = 30; // a shorter pause after drawing is not worth a timer
const ALONGSIDE = ["usage", "answered", "sent", "unapplied"]; // facts that do not show that the run goes on
const FAILED = "with an error; later requests omit it";

/** `question` is null for a run that was started elsewhere. */
export class Exchange {
  cursor = "";
  attempt = 0; // the latest attempt that has shown something
  text = "";
  ended = "";
  suspended = false; // the page stopped following the run before its end
  parked = false; // the run waits for people, and no worker holds it
  nudge = () => {}; // look now whether a parked run goes on
  #facts = [];
  #turns = []; // finished parts of the conversation within this run, as chat messages
  #turnStart = 0; // where the current part begins in the text
  #asked = false; // the agent has asked people since the attempt began, so the next attempt is no takeover
  #unapplied = [];
  #heardAt = null; // the time of the last fact; null if unknown
  #reasoning = "";
  #finish = "";
  #cancelled = false;
  #doing = { words: "Waiting for the agent", since: null };
  #foldedByUser = false; // the user has opened or closed the steps or the reasoning, so they stay as they are
  #drawScheduled = false;
  #unannounced = "";
  #frame = 0;
  #resolveStarted;

  /** `startedAt` is the time of the request in seconds, or null if it is unknown. */
  constructor({ question = null, model = "", runId = "", startedAt = null }) {
    Object.assign(this, { question, model, runId, startedAt });
    this.root = fromTemplate("exchange-template");
    this.started = new Promise((resolve) => (this.#resolveStarted = resolve));
    this.timeline = new Timeline(this.root.querySelector(".activity ol"), startedAt);
    this.stats = new Stats(this.root, startedAt, model);
    this.answer = new AnswerParts(this.part("answer"));
    this.people = new People(this.root, this.answer, (id, answer) => answerRun(this.runId, id, answer));
    this.#doing.since = startedAt;
    this.part("question").textContent = question ?? "A run that was started elsewhere";
    this.root.classList.toggle("elsewhere", question === null);
    for (const name of ["edit", "retry", "curl", "python"]) this.part(name).hidden = question === null;
    for (const name of ["activity", "reasoning"]) this.#letUserFold(name);
    if (runId) this.#setRunId(runId);
    byId("conversation").append(this.root);
    this.clock = setInterval(() => this.#showProgress(), CLOCK_MS);
  }

  /** Create an exchange from the value of `record()`. */
  static restored({ facts, cursor, attempt, ...record }) {
    const exchange = new Exchange(record);
    for (const { fact, at } of facts) exchange.apply(fact, at, { silently: true });
    exchange.cursor = String(cursor ?? "");
    exchange.attempt = isNumber(attempt) ? attempt : 0;
    exchange.#draw();
    return exchange;
  }

  /** Return the state to store, as a JSON value. */
  record() {
    const { question, model, runId, startedAt, cursor, attempt } = this;
    return { question, model, runId, startedAt, cursor, attempt, facts: this.#facts };
  }

  /** Whether later requests include this exchange: it needs a question and a reply. */
  get inHistory() {
    return this.question !== null && this.ended !== "" && !this.failed && (this.text !== "" || !this.#cancelled);
  }

  /** The chat messages of this exchange for later requests: question, answer, and what people said in between. */
  get turns() {
    const rest = this.text.slice(this.#turnStart).trim();
    const last = rest || !this.#turns.length ? [{ role: "assistant", content: rest && this.text.slice(this.#turnStart) }] : [];
    return [{ role: "user", content: this.question }, ...this.#turns, ...last];
  }

  /** What this tab has sent to the run and its agent has not taken. */
  get unappliedText() {
    return this.people.unappliedText;
  }

  part(name) {
    return this.root.querySelector(`.${name}`);
  }

  /** Apply one fact. `at` is its time in seconds, or null for a replayed fact, whose time is unknown. */
  apply(fact, at, { silently = false } = {}) {
    if (this.ended) return;
    if (fact.kind === "done" && this.parked) return; // the stream ended, but not the run
    appendFact(this.#facts, fact, at);
    this.#heardAt = at;
    const say = silently || at === null ? () => {} : (text) => (byId("status").textContent = text);
    if (fact.kind === "run") this.#setRunId(fact.id);
    else if (fact.kind === "text") this.#appendText(fact.text, at, silently);
    else if (fact.kind === "reasoning") this.#appendReasoning(fact.text, at);
    else if (fact.kind === "event") this.#showEvent(fact, at, say);
    else if (fact.kind === "call") this.#changeSteps(() => this.timeline.showClientToolCall(fact.call, at), at);
    else if (fact.kind === "takeover") this.#changeSteps(() => say(this.timeline.showTakeover(fact.pause, at)), at);
    else if (fact.kind === "parked") this.#park(fact.interrupts, at, say);
    else if (fact.kind === "answered") this.#showAnswer(fact, at);
    else if (fact.kind === "sent") keepingPlace(() => this.people.sent(fact.id, fact.text));
    else if (fact.kind === "unapplied") this.#unapplied = fact.ids;
    else if (fact.kind === "usage") this.stats.usage = fact.usage;
    else if (fact.kind === "finish") this.#finish = fact.reason;
    else if (fact.kind === "cancelled") this.#cancelled = true;
    else if (fact.kind === "failed") this.#end(FAILED, at, fact);
    else if (fact.kind === "done") this.#done(at);
    if (![...ALONGSIDE, "parked"].includes(fact.kind)) this.#unpark();
  }

  /** Note a message that this tab has sent to the run. The run may have ended since. */
  noteSent(id, text) {
    if (this.ended) this.people.sent(id, text);
    else this.apply({ kind: "sent", id, text }, now());
  }

  /** Offer exactly these questions: the run waits for them. */
  offer(interrupts) {
    this.people.offer(interrupts.map(({ id }) => id));
  }

  #showEvent({ event, data }, at, say) {
    this.#changeSteps(() => say(this.timeline.showEvent(event, data, at)), at);
    if (event === "interrupt") this.#ask({ ...data, id: data.event_id ?? data.id }, at, say);
    else if (event === "input_applied") {
      keepingPlace(() => {
        const said = this.people.apply(Array.isArray(data.inputs) ? data.inputs : [], this.text);
        this.#endTurn(said);
        say("The agent has read your message.");
      });
    }
  }

  /** Keep the text so far as one chat message, and add the messages of people. */
  #endTurn(said) {
    const text = this.text.slice(this.#turnStart);
    if (text.trim()) this.#turns.push({ role: "assistant", content: text });
    this.#turns.push(...said.map((content) => ({ role: "user", content })));
    this.#turnStart = this.text.length;
  }

  #ask(asked, at, say) {
    this.#asked = true;
    keepingPlace(() => {
      const onAnswer = (id, words) => {
        if (words) this.apply({ kind: "answered", id, words }, now());
        this.nudge();
      };
      const title = this.people.ask(asked, this.text, onAnswer);
      if (title) say(title);
    });
  }

  #park(interrupts, at, say) {
    for (const asked of interrupts) this.#ask(asked, at, say);
    keepingPlace(() => this.offer(interrupts));
    this.parked = true;
    this.part("reply").setAttribute("aria-busy", "false"); // screen readers may skip what is busy
    this.#showProgress();
    this.root.dispatchEvent(new Event("parked", { bubbles: true }));
  }

  #unpark() {
    if (!this.parked) return;
    this.parked = false;
    this.#do("Working", this.#heardAt);
    if (!this.ended) this.part("reply").setAttribute("aria-busy", "true");
    this.root.dispatchEvent(new Event("parked", { bubbles: true }));
  }

  #showAnswer({ id, words }, at) {
    this.people.answer(id, words);
    this.#changeSteps(() => this.timeline.endQuestion(id, words), at);
  }

  /**
   * Take the attempt of a frame; in the id 2-17 it is 2. A new attempt begins when another worker takes the run over.
   * The frame before all attempts has 0.
   */
  reachAttempt(attempt, at) {
    if (!(attempt > this.attempt)) return;
    if (this.#asked) {
      this.#asked = false; // the answers, or the end of the time for them, have begun this attempt
      this.people.close("elsewhere");
      this.timeline.endQuestions();
      this.attempt = attempt;
      return;
    }
    const pause = at === null || this.#heardAt === null ? null : at - this.#heardAt;
    if (this.attempt >= 1) this.apply({ kind: "takeover", pause }, at);
    this.attempt = attempt;
  }

  /** Show a problem when following stops before the run has ended. `gone`: the server does not know the run any more. */
  suspend({ message, reason }, gone) {
    this.suspended = true;
    this.showReconnecting(false);
    this.#stopClock();
    this.#showProblem({ message, reason });
    this.part("retry").hidden = gone && this.question === null;
    this.#showState("failed", gone ? "Not available" : "Disconnected");
    this.stats.set("ended", "unknown");
    this.part("reply").classList.add("ended");
  }

  /** Remove the problem that `suspend` showed. */
  resume() {
    this.suspended = false;
    this.#showProblem(null);
    this.part("reply").classList.remove("ended");
    this.stats.set("ended", "running");
    this.clock ||= setInterval(() => this.#showProgress(), CLOCK_MS);
    this.#showProgress();
  }

  showReconnecting(is) {
    this.part("reconnecting").hidden = !is;
  }

  /** Remove the exchange from the page. */
  remove() {
    this.#stopClock();
    cancelAnimationFrame(this.#frame);
    this.root.remove();
  }

  #setRunId(runId) {
    this.runId = runId;
    this.part("link").href = `#run=${runId}`;
    this.part("link").hidden = false;
    this.part("copy-link").hidden = false;
    this.#resolveStarted();
  }

  #appendText(text, at, silently) {
    if (!this.text.trim()) this.#fold(); // from now on nothing above the answer changes its height
    this.text += text;
    this.stats.count(text, at);
    this.#do("Writing", at);
    if (!silently && at !== null) this.#unannounced += text;
    this.#scheduleDraw();
  }

  #appendReasoning(text, at) {
    this.#reasoning += text;
    this.stats.count(text, at);
    this.#do("Thinking", at);
    this.#scheduleDraw();
  }

  #changeSteps(change, at) {
    keepingPlace(() => {
      change();
      const activity = this.part("activity");
      activity.dataset.steps = this.timeline.entries;
      activity.querySelector("summary").tabIndex = 0;
      if (!this.#foldedByUser && !this.text.trim()) activity.open = true;
      const { words, since } = this.timeline.current ?? { words: "Working", since: at };
      this.#do(words, since);
      this.#showProgress();
    });
  }

  /** Store the current step of the agent and its start time. */
  #do(words, since) {
    if (this.#doing.words !== words) this.#doing = { words, since };
  }

  #letUserFold(name) {
    const summary = this.part(name).querySelector("summary");
    summary.addEventListener("click", (event) => {
      if (name === "activity" && this.timeline.entries === 0) event.preventDefault(); // there is nothing to open
      else this.#foldedByUser = true;
    });
  }

  #fold() {
    if (this.#foldedByUser) return;
    keepingPlace(() => {
      this.part("activity").open = false;
      this.part("reasoning").open = false;
    });
  }

  /** Draw at most once per screen refresh, and less often if drawing is slow. */
  #scheduleDraw() {
    if (this.#drawScheduled) return;
    this.#drawScheduled = true;
    this.#frame = requestAnimationFrame(() => {
      const began = performance.now();
      this.#draw();
      const rest = (performance.now() - began) * (DRAWING_SHARE - 1);
      if (rest < LONG_PAUSE_MS) return;
      this.#drawScheduled = true; // new text waits until the pause is over
      setTimeout(() => ((this.#drawScheduled = false), this.ended || this.#scheduleDraw()), rest);
    });
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#drawScheduled = false;
    keepingPlace(() => {
      const thought = this.part("thought");
      this.part("reasoning").hidden = !this.#reasoning;
      if (thought.textContent !== this.#reasoning) {
        thought.textContent = this.#reasoning;
        thought.scrollTop = thought.scrollHeight;
      }
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
    else this.#end(FAILED, at, { message: "The stream ended before the answer was complete.", reason: "" });
  }

  #end(how, at, problem = null) {
    this.ended = how;
    this.failed = problem !== null;
    this.#stopClock();
    this.#draw();
    this.#announce(/^[^]+$/);
    this.#fold();
    keepingPlace(() => {
      this.part("reply").setAttribute("aria-busy", "false");
      this.part("reply").classList.add("ended");
      this.part("copy").hidden = !this.text;
      this.people.close(this.#cancelled || problem ? "ended" : "elsewhere");
      this.people.showUnapplied(this.#unapplied);
      this.timeline.close();
      this.#showProblem(problem);
      this.stats.end(how, at, this.timeline.inferenceSeconds);
      this.#showOutcome(this.stats.since(at));
    });
  }

  /** Show the last state in words, such as "Answered in 2.1 s · 6 steps, 1 failed". */
  #showOutcome(time) {
    const { steps, failures, takeovers } = this.timeline;
    const [verb, preposition] = this.failed ? ["Failed", "after"] : this.#cancelled ? ["Stopped", "after"] : ["Answered", "in"];
    const took = time === null ? verb : `${verb} ${preposition} ${clock(time)}`;
    const counted = steps ? ` · ${steps} ${steps === 1 ? "step" : "steps"}` : "";
    const state = this.failed ? "failed" : this.#cancelled ? "stopped" : failures ? "troubled" : "done";
    this.#showState(state, `${took}${counted}`);
    if (failures) this.part("state").append(", ", element("span", "bad", `${failures} failed`));
    if (takeovers) this.part("state").append(" · continued by another worker");
  }

  #showState(state, words) {
    this.part("activity").dataset.state = state;
    this.part("state").textContent = words;
  }

  /** Show a problem, { message, reason }, with the button that tries again; null for none. */
  #showProblem(problem) {
    this.part("failure").hidden = !problem;
    this.part("problem").textContent = problem?.message ?? "";
    this.part("reason").textContent = problem?.reason ?? "";
    if (problem) this.part("failure").append(this.part("retry"));
    else this.part("actions").insertBefore(this.part("retry"), this.part("more"));
  }

  #stopClock() {
    clearInterval(this.clock);
    this.clock = 0;
  }

  /** Show what the agent does and for how long, such as "Running sql_query · 2.1 s". */
  #showProgress() {
    if (this.ended || this.suspended) return;
    const { words, since } = this.#doing;
    if (this.people.isAsked) this.people.showDeadlines();
    if (this.parked) this.#showState("waiting", "Waiting for your answer");
    else this.#showState("running", since === null ? words : `${words} · ${clock(now() - since)}`);
    this.stats.showProgress();
  }
}

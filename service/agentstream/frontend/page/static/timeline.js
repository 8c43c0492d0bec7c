// The timeline of one run: turns, inferences and tool calls, from the events of the agent.

import { asText, element, fromTemplate, isNumber, seconds } from "./dom.js";

const LONG_TEXT = 400; // characters; a longer argument or result is collapsed at first
const MAX_TEXT_CHARACTERS = 50_000; // of an argument or result that are shown
const MAX_STEPS = 500; // further steps are counted, but not drawn

/** A start event opens a step, and its end event closes this step. Unknown events are shown too. */
export class Timeline {
  entries = 0; // everything in the list
  steps = 0; // the entries that are steps of the agent
  takeovers = 0; // times that another worker continued the run
  failures = 0; // number of steps that failed
  #list;
  #startedAt;
  #open = []; // running steps: { kind, name, id, item, at }
  #calls = new Map(); // index of a call of the client's tool -> { step, id, arguments }
  inferenceSeconds = 0; // total; null if the duration of an inference is unknown

  /** `startedAt` is the time of the request in seconds, or null if it is unknown. */
  constructor(list, startedAt) {
    this.#list = list;
    this.#startedAt = startedAt;
  }

  /** Show an event. `at` is its time in seconds, or null. Returns the text for screen readers, "" for none. */
  showEvent(event, data, at) {
    const name = asText(data.tool ?? "tool");
    const id = data.tool_call_id ?? data.event_id; // the server renames the field `id` to `event_id`
    if (event === "agent_turn_start") {
      this.#finish(this.#addStep(at, "turn", "Turn", asText(data.agent ?? "")), "note");
    } else if (event === "inference_start") {
      this.#addStep(at, "inference", "Model", [data.model, data.engine].filter(Boolean).map(asText).join(" on "));
    } else if (event === "inference_end") {
      const step = this.#findOpenStep("inference") ?? this.#addStep(at, "inference", "Model", asText(data.model ?? ""));
      this.#endInference(step, data, at);
    } else if (event === "tool_call_start") {
      const again = this.#open.find((step) => step.interrupted && step.name === name && step.id === id);
      if (again) again.interrupted = false;
      else this.#block(this.#addStep(at, "tool", "Tool", name, { name, id }), "Arguments", data.arguments);
      return `Tool ${name} is running.`;
    } else if (event === "tool_call_end") {
      this.#endTool(this.#findOpenStep("tool", name, id) ?? this.#addStep(at, "tool", "Tool", name, { name, id }), data, at);
      return `Tool ${name} ${data.success === false ? "failed" : "has finished"}.`;
    } else if (event === "interrupt") {
      const payload = typeof data.payload === "object" && data.payload !== null ? data.payload : { message: data.payload };
      this.#addStep(at, "question", "Question", asText(payload.tool ?? payload.message ?? data.kind), { id });
    } else if (event === "input_applied") {
      const inputs = Array.isArray(data.inputs) ? data.inputs : [];
      this.#finish(this.#addStep(at, "input", "Message", `${inputs.length} taken by the agent`), "note");
    } else if (event === "tool_results") {
      const results = Array.isArray(data.results) ? data.results : [];
      const summary = results.map((r) => `${asText(r?.tool_name)} ${r?.success ? "ok" : "failed"}`).join(", ");
      const failed = results.some((result) => !result?.success);
      this.#finish(this.#addStep(at, "results", "Results", summary), failed ? "note-failed" : "note");
    } else {
      const step = this.#addStep(at, "other", "Event", event);
      this.#block(step, "Data", data);
      this.#finish(step, "note");
    }
    return "";
  }

  /** Show the answer to a question. */
  endQuestion(id, words) {
    const step = this.#open.find((open) => open.kind === "question" && open.id === id);
    if (step) this.#finish(step, "note", words);
  }

  /** Show that the open questions are over: the run went on. */
  endQuestions() {
    for (const step of this.#open.filter(({ kind }) => kind === "question")) this.#finish(step, "note");
  }

  /** Show that another worker continues the run, after a pause in seconds (null if unknown). Returns like `showEvent`. */
  showTakeover(pause, at) {
    for (const step of [...this.#open]) {
      step.interrupted = true; // a tool may run again, and it ends later in any case
      if (step.kind === "tool") continue;
      this.inferenceSeconds = null; // the time of this inference is unknown
      this.#finish(step, "unfinished", "interrupted");
    }
    const step = this.#addStep(at, "worker", "Worker", "Another worker continues this answer");
    this.steps -= 1;
    this.takeovers += 1;
    this.#finish(step, "note", isNumber(pause) ? `after a pause of ${seconds(pause)}` : "");
    return "Another worker continues the answer.";
  }

  /** Show a delta of a call of the client's own tool. This page does not run it. */
  showClientToolCall(delta, at) {
    const index = delta?.index ?? 0;
    let call = this.#calls.get(index);
    if (!call) {
      call = { text: "", body: null };
      const step = this.#addStep(at, "call", "Client tool", asText(delta?.function?.name ?? "tool"));
      call.body = this.#block(step, "Arguments", "");
      this.#finish(step, "note", "to be run by the client");
      this.#calls.set(index, call);
    }
    call.text += asText(delta?.function?.arguments ?? "");
    call.body.textContent = truncate(call.text) || "(none yet)";
  }

  /** Return what the agent does now, as { words, since }; null if no step is open. `since` is null if unknown. */
  get current() {
    const question = this.#open.find((step) => step.kind === "question");
    if (question) return { words: "Waiting for your answer", since: question.at };
    const tools = this.#open.filter((step) => step.kind === "tool");
    const [step] = tools.length ? tools : this.#open;
    if (!step) return null;
    const others = tools.length > 1 ? ` and ${tools.length - 1} more` : "";
    return { words: tools.length ? `Running ${step.name}${others}` : "Thinking", since: step.at };
  }

  /** Mark the open steps as unfinished: the run has ended before them. */
  close() {
    for (const step of [...this.#open]) this.#finish(step, "unfinished", "unfinished");
  }

  #endInference(step, data, at) {
    const took = duration(step.at, at);
    if (took === null) this.inferenceSeconds = null;
    else if (this.inferenceSeconds !== null) this.inferenceSeconds += took;
    const usage = data.event_usage ?? data.usage;
    const notes = took === null ? [] : [seconds(took)];
    if (isNumber(usage?.total_tokens)) notes.push(`${usage.prompt_tokens} in, ${usage.completion_tokens} out`);
    if (data.finish_reason) notes.push(asText(data.finish_reason));
    this.#finish(step, "done", notes.join(" · "));
  }

  #endTool(step, data, at) {
    const took = isNumber(data.latency) ? data.latency : duration(step.at, at);
    const failed = data.success === false;
    this.#block(step, failed ? "Error" : "Result", data.result);
    const notes = [failed && "failed", took !== null && seconds(took)].filter(Boolean);
    this.#finish(step, failed ? "failed" : "done", notes.join(" after "));
  }

  #addStep(at, kind, title, detail, key = {}) {
    const item = fromTemplate("step-template");
    const step = { kind, ...key, item, at };
    const since = duration(this.#startedAt, at);
    item.dataset.kind = kind;
    item.querySelector(".name").textContent = title;
    item.querySelector(".detail").textContent = detail.length > LONG_TEXT ? `${detail.slice(0, LONG_TEXT)}…` : detail;
    item.querySelector(".at").textContent = since === null ? "" : `+${seconds(since)}`;
    this.steps += 1;
    this.entries += 1;
    if (this.entries <= MAX_STEPS) this.#list.append(item);
    if (this.entries === MAX_STEPS + 1) this.#list.append(element("li", "rest", "Further steps are not shown."));
    this.#open.push(step);
    return step;
  }

  #findOpenStep(kind, name, id) {
    const same = this.#open.filter((step) => step.kind === kind && step.name === name);
    return same.find((step) => id !== undefined && step.id === id) ?? same[0];
  }

  #finish(step, state, note = "") {
    this.#open = this.#open.filter((other) => other !== step);
    step.item.dataset.state = state;
    if (state === "failed") this.failures += 1;
    if (note) step.item.querySelector(".detail").after(" ", element("span", "note", note));
  }

  #block(step, label, value) {
    const text = asText(value);
    const long = text.length > LONG_TEXT;
    const box = element(long ? "details" : "div", "block");
    const body = element("pre", "", truncate(text) || "(empty)");
    body.dir = "auto";
    box.append(element(long ? "summary" : "span", "", long ? `${label} (${text.length} characters)` : label), body);
    step.item.append(box);
    return body;
  }
}

/** Return the seconds between two times, or null if one of them is unknown. */
const duration = (from, to) => (from === null || to === null ? null : to - from);

function truncate(text) {
  if (text.length <= MAX_TEXT_CHARACTERS) return text;
  return `${text.slice(0, MAX_TEXT_CHARACTERS)}\n… ${text.length - MAX_TEXT_CHARACTERS} more characters`;
}

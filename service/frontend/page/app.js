// The playground: one streamed chat completion at a time, with the agent's named events shown as they arrive.
// Text from outside (answers, events, errors, model names) enters the page through textContent only.

const KEY_ITEM = "agentstream.key";
const LONG_TEXT = 400; // characters; a longer argument or result starts folded
const SHORTEST_TIMED_S = 0.05; // below this, tokens per second says more about the network than the model
const byId = (id) => document.getElementById(id);
const now = () => performance.now() / 1000;
const seconds = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");

/** What went wrong, in words for the person in front of the page. */
class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Incremental server-sent events parser (WHATWG HTML, 9.2.6): bytes in any pieces, whole messages out. */
export class SseParser {
  #utf8 = new TextDecoder(); // keeps a split character for the next piece, drops a leading BOM
  #line = "";
  #afterCr = false; // the last piece ended in CR: an LF that comes first belongs to it
  #data = [];
  #event = "";
  lastEventId = "";

  push(bytes) {
    let text = this.#utf8.decode(bytes, { stream: true });
    if (this.#afterCr && text) {
      text = text.replace(/^\n/, "");
      this.#afterCr = false;
    }
    const messages = [];
    const lines = text.split(/\r\n|\r|\n/);
    if (text.endsWith("\r")) this.#afterCr = true;
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    for (const line of lines) {
      if (line) this.#field(line);
      else this.#dispatch(messages);
    }
    return messages;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.lastEventId = value;
  }

  #dispatch(messages) {
    if (this.#data.length) {
      messages.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.lastEventId });
    }
    this.#data = [];
    this.#event = "";
  }
}

/** The timeline of one run: a start event opens a step, its end event closes the same step. */
class Activity {
  #open = []; // steps still running: { kind, name, id, item, at }
  inferenceSeconds = 0;

  constructor(root, startedAt) {
    this.root = root;
    this.list = root.querySelector("ol");
    this.startedAt = startedAt;
  }

  take(event, data) {
    const name = asText(data.tool ?? "tool");
    const id = data.tool_call_id ?? data.event_id; // a field called id arrives as event_id
    if (event === "agent_turn_start") {
      this.#finish(this.#step("turn", "Turn started", asText(data.agent ?? "")), "done");
    } else if (event === "inference_start") {
      this.#step("inference", "Model", [data.model, data.engine].filter(Boolean).map(asText).join(" on "));
    } else if (event === "inference_end") {
      this.#endInference(this.#take("inference") ?? this.#step("inference", "Model", asText(data.model ?? "")), data);
    } else if (event === "tool_call_start") {
      this.#block(this.#step("tool", "Tool", name, { name, id }), "Arguments", data.arguments);
    } else if (event === "tool_call_end") {
      this.#endTool(this.#take("tool", name, id) ?? this.#step("tool", "Tool", name, { name, id }), data);
    } else if (event === "tool_results") {
      const results = Array.isArray(data.results) ? data.results : [];
      const told = results.map((r) => `${asText(r?.tool_name)} ${r?.success ? "ok" : "failed"}`).join(", ");
      this.#finish(this.#step("results", "Tool results", told), "done");
    } else {
      const step = this.#step("other", "Event", event);
      const { id: _, object, created, choices, ...fields } = data;
      this.#block(step, "Data", fields);
      this.#finish(step, "done");
    }
  }

  /** Mark what never ended: the run stopped or failed while it was under way. */
  close() {
    for (const step of [...this.#open]) this.#finish(step, "unfinished", "unfinished");
  }

  #endInference(step, data) {
    const took = now() - step.at;
    this.inferenceSeconds += took;
    const usage = data.event_usage ?? data.usage;
    const notes = [seconds(took)];
    if (isNumber(usage?.total_tokens)) notes.push(`${usage.prompt_tokens} in, ${usage.completion_tokens} out`);
    if (data.finish_reason) notes.push(asText(data.finish_reason));
    this.#finish(step, "done", notes.join(" · "));
  }

  #endTool(step, data) {
    const took = isNumber(data.latency) ? data.latency : now() - step.at;
    const failed = data.success === false;
    this.#block(step, failed ? "Error" : "Result", data.result);
    this.#finish(step, failed ? "failed" : "done", `${failed ? "failed after " : ""}${seconds(took)}`);
  }

  #step(kind, title, detail, key = {}) {
    const item = byId("step-template").content.cloneNode(true).firstElementChild;
    const step = { kind, ...key, item, at: now() };
    item.dataset.kind = kind;
    item.querySelector(".name").textContent = title;
    item.querySelector(".detail").textContent = detail;
    item.querySelector(".at").textContent = `+${seconds(step.at - this.startedAt)}`;
    this.list.append(item);
    this.root.hidden = false;
    this.root.querySelector(".count").textContent = this.list.childElementCount;
    this.#open.push(step);
    return step;
  }

  #take(kind, name, id) {
    const same = this.#open.filter((step) => step.kind === kind && step.name === name);
    return same.find((step) => id !== undefined && step.id === id) ?? same[0];
  }

  #finish(step, state, note = "") {
    this.#open = this.#open.filter((other) => other !== step);
    step.item.dataset.state = state;
    if (!note) return;
    const noted = document.createElement("span");
    noted.className = "note";
    noted.textContent = note;
    step.item.querySelector(".detail").after(" ", noted);
  }

  #block(step, label, value) {
    const text = asText(value);
    const long = text.length > LONG_TEXT;
    const box = document.createElement(long ? "details" : "div");
    const head = document.createElement(long ? "summary" : "span");
    const body = document.createElement("pre");
    box.className = "block";
    head.textContent = long ? `${label} (${text.length} characters)` : label;
    body.textContent = text || "(empty)";
    box.append(head, body);
    step.item.append(box);
  }
}

/** One question and its reply: reads the stream, keeps the numbers, draws both. */
class Exchange {
  text = "";
  finishReason = null;
  usage = null;
  done = false;
  #undrawn = "";
  #unspoken = "";
  #frame = 0;

  constructor(question) {
    const root = byId("exchange-template").content.cloneNode(true).firstElementChild;
    const part = (name) => root.querySelector(`.${name}`);
    this.startedAt = now();
    this.view = { root, reply: part("reply"), waiting: part("waiting"), failure: part("failure") };
    this.activity = new Activity(part("activity"), this.startedAt);
    this.answer = document.createTextNode("");
    part("question").textContent = question;
    part("answer").append(this.answer);
    byId("conversation").append(root);
    this.clock = setInterval(() => this.#stat("time", seconds(now() - this.startedAt)), 100);
  }

  /** Read the response to its end; raises Failure if the stream tells of one, or ends too early. */
  async read(response) {
    const parser = new SseParser();
    const reader = response.body.getReader();
    while (!this.done) {
      const { value, done } = await reader.read().catch((cause) => {
        throw new Failure(`The connection broke while the answer was streaming (${cause.message}).`);
      });
      if (done) break;
      for (const message of parser.push(value)) this.#take(message);
    }
    if (this.finishReason === null) throw new Failure("The stream ended before the answer was complete.");
    if (!this.done) throw new Failure("The stream ended without its end marker; the answer may be incomplete.");
  }

  #take({ event, data }) {
    if (this.done) return;
    if (data === "[DONE]") {
      this.done = true;
      return;
    }
    const body = parsedObject(data);
    if (body === null) throw new Failure(`The stream holds something that is not a JSON object: ${data.slice(0, 80)}`);
    if (body.error) throw new Failure(errorText(body.error));
    if (event !== "message") {
      keepingBottom(() => this.activity.take(event, body));
      return;
    }
    const choice = body.choices?.[0];
    const content = choice?.delta?.content;
    const failed = body.agent_error;
    if (failed) throw new Failure(errorText({ ...failed, message: content || failed.message }));
    if (body.usage) this.usage = body.usage;
    if (content) this.#write(content);
    if (choice?.finish_reason) this.finishReason = choice.finish_reason;
  }

  #write(content) {
    if (!this.text) {
      this.view.waiting.remove();
      this.#stat("first", seconds(now() - this.startedAt));
    }
    this.text += content;
    this.#undrawn += content;
    this.#unspoken += content;
    // Many tokens a screen refresh: one change of the page.
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    keepingBottom(() => this.answer.appendData(this.#undrawn));
    this.#undrawn = "";
    this.#speak(/^[^]*(?:[.!?:]\s|\n)/);
  }

  /** Hand whole sentences to screen readers: token by token they would be read in shreds. */
  #speak(pattern) {
    const [ready] = this.#unspoken.match(pattern) ?? [""];
    if (!ready.trim()) return;
    this.#unspoken = this.#unspoken.slice(ready.length);
    const line = document.createElement("p");
    line.textContent = ready;
    byId("spoken").append(line);
    while (byId("spoken").childElementCount > 3) byId("spoken").firstElementChild.remove();
  }

  /** Draw the end, whatever it was: `ended` in a word or two, `problem` if it was a failure. */
  end(ended, problem = "") {
    clearInterval(this.clock);
    const took = now() - this.startedAt;
    this.#draw();
    this.#speak(/^[^]+$/);
    keepingBottom(() => {
      this.view.waiting.remove();
      this.view.reply.setAttribute("aria-busy", "false");
      this.activity.close();
      this.view.failure.hidden = !problem;
      this.view.failure.textContent = problem;
      this.#stat("time", seconds(took));
      this.#stat("ended", ended);
      this.#showUsage(took);
    });
  }

  #showUsage(took) {
    const { prompt_tokens: prompt, completion_tokens: completion } = this.usage ?? {};
    if (!isNumber(prompt) || !isNumber(completion)) return;
    this.#stat("tokens", `${prompt} in, ${completion} out`);
    // Over the time the model was at work; over the whole run if the agent does not tell.
    const worked = this.activity.inferenceSeconds || took;
    if (worked >= SHORTEST_TIMED_S) this.#stat("speed", `${(completion / worked).toFixed(1)} tokens/s`);
  }

  #stat(name, text) {
    this.view.root.querySelector(`[data-stat=${name}]`).textContent = text;
  }
}

/** Change the page; if its end was in view before, it still is afterwards. */
function keepingBottom(change) {
  const page = document.documentElement;
  const atBottom = page.scrollHeight - window.innerHeight - window.scrollY < 60;
  change();
  if (atBottom) window.scrollTo(0, page.scrollHeight);
}

function parsedObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** One sentence from an OpenAI-shaped error object (or from whatever came in its place). */
function errorText(error) {
  if (typeof error !== "object") return asText(error);
  const labels = [error.code ?? error.type, error.param && `parameter ${asText(error.param)}`].filter(Boolean);
  const message = error.message ? asText(error.message) : "The server gave no reason.";
  return labels.length ? `${message} (${labels.map(asText).join(", ")})` : message;
}

async function refusal(response) {
  const body = await response.text().catch(() => "");
  const error = parsedObject(body)?.error;
  const retry = response.headers.get("retry-after");
  const reason = error ? errorText(error) : body.slice(0, 300) || response.statusText || "no explanation";
  return new Failure(`${response.status}: ${reason}${retry ? ` Try again in ${retry} s.` : ""}`, response.status);
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch((cause) => {
    throw new Failure(`The server cannot be reached (${cause.message}).`);
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

const conversation = []; // what follow-ups send: whole exchanges only
let running = null; // AbortController of the run under way

async function ask(question) {
  const model = byId("model").value.trim() || byId("model").placeholder || (await loadModels());
  if (!model || running) return;
  notice("");
  byId("welcome")?.remove();
  byId("spoken").replaceChildren();
  byId("prompt").value = "";
  const exchange = new Exchange(question);
  const controller = new AbortController();
  const messages = [...conversation, { role: "user", content: question }];
  let kept = false;
  if (byId("access").open) byId("prompt").focus();
  byId("access").open = false;
  setRunning(controller);
  window.scrollTo(0, document.documentElement.scrollHeight);
  try {
    const response = await request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Agent-Events": "named" },
      body: JSON.stringify({ model, messages, stream: true }),
      signal: controller.signal,
    });
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      throw new Failure("The server did not answer with an event stream.");
    }
    await exchange.read(response);
    kept = true;
    exchange.end(exchange.finishReason);
  } catch (error) {
    if (controller.signal.aborted) {
      kept = exchange.text !== "";
      exchange.end("stopped by you");
    } else {
      controller.abort(); // lets go of a stream that failed half-way
      fail(exchange, question, error);
    }
  } finally {
    if (kept) conversation.push(messages.at(-1), { role: "assistant", content: exchange.text });
    setRunning(null);
  }
}

function fail(exchange, question, error) {
  const told = error instanceof Failure ? error.message : `The page itself failed: ${error.message}`;
  exchange.end("with an error; follow-ups leave it out", told);
  if (!byId("prompt").value) byId("prompt").value = question;
  if (error.status === 401) askForKey();
  if (!(error instanceof Failure)) throw error;
}

function askForKey() {
  byId("access").open = true;
  notice("This server needs an API key.", byId("key"));
}

function notice(text, field) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
  field?.focus();
}

function setRunning(controller) {
  const hadFocus = document.activeElement === byId("stop") || document.activeElement === byId("send");
  byId("status").textContent = controller ? "The agent is working." : running ? "The reply has ended." : "";
  running = controller;
  byId("stop").hidden = !controller;
  byId("send").hidden = Boolean(controller);
  byId("restart").disabled = Boolean(controller) || !document.querySelector(".exchange");
  if (hadFocus) (controller ? byId("stop") : byId("prompt")).focus();
}

/** Offer the server's models; an empty field means the first one, whose name is returned ("" if there is none). */
async function loadModels() {
  try {
    const { data } = await (await request("v1/models")).json();
    const names = data.map((model) => asText(model.id));
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
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("restart").addEventListener("click", () => {
  conversation.length = 0;
  for (const exchange of document.querySelectorAll(".exchange")) exchange.remove();
  byId("restart").disabled = true;
  byId("prompt").focus();
});
byId("key").value = sessionStorage.getItem(KEY_ITEM) ?? "";
byId("key").addEventListener("change", () => {
  sessionStorage.setItem(KEY_ITEM, byId("key").value);
  loadModels();
});
loadModels();

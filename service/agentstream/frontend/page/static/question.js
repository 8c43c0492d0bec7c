// One question of an agent (an interrupt of its run), with the fields and buttons to answer it.

import { asText, button, element, fromTemplate, isComposing, isSendKey, now } from "./dom.js";
import { addField, fieldsOf } from "./question_fields.js";

const MAX_REASON_CHARACTERS = 2000; // the server's limit
const MAX_GIVEN_CHARACTERS = 20_000; // of the arguments or the payload that are shown
const MAX_WORDS_CHARACTERS = 300; // of an answer that is shown afterwards

/** The outcome of a question that was not answered in this tab. */
const CLOSED = {
  already_answered: "Somebody else has answered this question.",
  interrupt_expired: "Nobody answered in time. The agent goes on without an answer.",
  elsewhere: "This question was answered elsewhere.",
  ended: "The run has ended without an answer.",
};

export class Question {
  answered = false; // in this tab
  #send; // (id, answer) -> promise
  #read = null; // returns the answer of the fields; null for an approval

  /** `asked` is the interrupt; `send` sends an answer and throws Failure; `onAnswer(words)` is called afterwards. */
  constructor(asked, send, onAnswer) {
    Object.assign(this, { asked, onAnswer });
    this.#send = send;
    this.root = fromTemplate("question-template");
    this.title = titleOf(asked);
    this.#part("asks").textContent = this.title;
    this.#showPayload();
    if (isApproval(asked)) this.#askForApproval();
    else this.#askForAnswer();
    this.root.addEventListener("submit", (event) => event.preventDefault());
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !isComposing(event)) event.preventDefault(); // Escape outside of a field stops a run
    });
    this.showDeadline();
  }

  get isOpen() {
    return this.root.dataset.state === "open";
  }

  get expired() {
    return this.asked.expires_at <= now();
  }

  /** Show until when the question can be answered. */
  showDeadline() {
    const until = new Date(this.asked.expires_at * 1000);
    const time = until.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const text = this.expired ? "The time to answer is over." : `You can answer until ${time}.`;
    const place = this.#part("until");
    if (place.textContent !== text) place.textContent = text;
  }

  /** Offer the question again, unless it was answered in this tab. */
  reopen() {
    if (this.answered) return;
    this.root.dataset.state = "open";
    this.#part("outcome").hidden = true;
    this.#part("outcome").textContent = "";
    this.#part("controls").disabled = false;
  }

  /** Show that the question was answered in this tab. */
  showAnswer(words) {
    this.answered = true;
    this.#close(words);
  }

  /** Remove the fields of a question that was not answered here. `why` is a key of CLOSED. */
  close(why) {
    if (this.isOpen) this.#close(CLOSED[why === "elsewhere" && this.expired ? "interrupt_expired" : why]);
  }

  focus() {
    this.#part("asks").focus();
    this.root.scrollIntoView({ block: "nearest" });
  }

  #part(name) {
    return this.root.querySelector(`.${name}`);
  }

  #close(words) {
    const hadFocus = this.root.contains(document.activeElement);
    this.root.dataset.state = "closed";
    this.#showProblem("");
    this.#part("controls").disabled = true;
    this.#part("outcome").textContent = words;
    this.#part("outcome").hidden = false;
    if (hadFocus) this.#part("outcome").focus({ preventScroll: true }); // its button is gone
  }

  #showPayload() {
    const { payload } = this.asked;
    const fields = typeof payload === "object" && payload !== null && !Array.isArray(payload) ? { ...payload } : null;
    const message = fields ? fields.message : payload;
    if (typeof message === "string") {
      this.#part("message").textContent = message;
      if (fields) delete fields.message;
    }
    if (isApproval(this.asked) && fields) {
      const { tool, arguments: given, ...rest } = fields;
      if (given !== undefined) this.#block("Arguments", readable(given));
      if (Object.keys(rest).length) this.#block("Details", rest);
      if (tool === undefined && typeof message !== "string") this.#part("message").textContent = this.asked.kind;
    } else if (fields && Object.keys(fields).length) this.#block("Details", fields);
    else if (!fields && typeof message !== "string" && payload !== null) this.#block("Details", payload);
  }

  #block(label, value) {
    const text = asText(value);
    const box = element("div", "block");
    const shown = text.length > MAX_GIVEN_CHARACTERS ? `${text.slice(0, MAX_GIVEN_CHARACTERS)}\n… cut` : text;
    const body = element("pre", "", shown || "(empty)");
    body.dir = "auto";
    body.tabIndex = 0; // a long text scrolls
    body.setAttribute("aria-label", label);
    body.setAttribute("role", "region");
    box.append(element("span", "", label), body);
    this.#part("given").append(box);
  }

  #askForApproval() {
    const fields = element("div", "fields");
    const reason = addField(fields, "Reason", { type: "string", maxLength: MAX_REASON_CHARACTERS }, false);
    this.#part("controls").prepend(fields);
    const decide = (approve) => {
      const why = reason();
      const words = `${approve ? "Approved" : "Denied"}${why === undefined ? "" : `: ${why}`}`;
      this.#answer({ approve, ...(why === undefined ? {} : { reason: why }) }, words);
    };
    const deny = button("deny quiet", "Deny", () => decide(false));
    const approve = button("approve", "Approve", () => decide(true));
    this.#part("row").append(deny, approve);
  }

  #askForAnswer() {
    const { schema } = this.asked;
    if (schema) {
      const { box, read } = fieldsOf(schema);
      this.#part("controls").prepend(box);
      this.#read = read;
    } else {
      const fields = element("div", "fields");
      const read = addField(fields, "Your answer", { type: "string", maxLength: 10_000 }, true);
      this.#part("controls").prepend(fields);
      this.#read = read;
    }
    const send = element("button", "reply-now", "Answer");
    send.type = "submit";
    this.#part("row").append(send);
    if (!schema) {
      this.#part("fields").addEventListener("keydown", (event) => {
        if (!isSendKey(event)) return;
        event.preventDefault();
        send.click();
      });
    }
    this.root.addEventListener("submit", () => {
      const answer = this.#read();
      this.#answer(answer, `Answered: ${inWords(answer)}`);
    });
  }

  async #answer(answer, words) {
    if (!this.isOpen || this.#part("controls").disabled) return;
    this.#showProblem("");
    const focused = document.activeElement; // a disabled button loses the focus
    this.#part("controls").disabled = true;
    try {
      await this.#send(this.asked.id, answer);
      if (this.root.contains(focused)) this.#part("asks").focus({ preventScroll: true });
      this.onAnswer(words);
    } catch (error) {
      this.#part("controls").disabled = false;
      focused?.focus?.({ preventScroll: true });
      if (error.code in CLOSED) {
        this.close(error.code);
        this.onAnswer("");
      } else this.#showProblem([error.message, error.reason].filter(Boolean).join(" "));
    }
  }

  #showProblem(text) {
    this.#part("wrong").textContent = text;
    this.#part("wrong").hidden = !text;
  }
}

const isApproval = ({ kind, schema }) => kind === "approval" && schema?.properties?.approve?.type === "boolean";

function titleOf({ kind, payload, ...asked }) {
  const tool = typeof payload === "object" && payload !== null ? payload.tool : undefined;
  if (!isApproval({ kind, ...asked })) return "The agent asks";
  return typeof tool === "string" ? `May the agent run ${tool}?` : "Does the agent have your approval?";
}

/** Return JSON text in a form for people; other values stay as they are. */
function readable(given) {
  if (typeof given !== "string") return given;
  try {
    return JSON.stringify(JSON.parse(given), null, 2);
  } catch (error) {
    if (error instanceof SyntaxError) return given;
    throw error;
  }
}

function inWords(answer) {
  const text =
    typeof answer === "string"
      ? answer
      : Object.entries(answer)
          .map(([name, value]) => `${name} ${typeof value === "boolean" ? (value ? "yes" : "no") : value}`)
          .join(", ");
  return text.length > MAX_WORDS_CHARACTERS ? `${text.slice(0, MAX_WORDS_CHARACTERS)}…` : text || "nothing";
}

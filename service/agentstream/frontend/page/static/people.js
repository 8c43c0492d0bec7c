// What an agent asks people during one run, and the messages that people send to the run.

import { element } from "./dom.js";
import { Question } from "./question.js";

export class People {
  #parts;
  #questions = new Map(); // id -> Question
  #sent = new Map(); // id of a message of this tab that the agent has not taken -> { text, bubble }
  #applied = new Set(); // ids of messages that the agent has taken
  #unapplied = []; // ids of messages that the agent has not taken by the end of the run
  #root;
  #send;

  /** `root` is the element of the exchange, `parts` its AnswerParts. `send(id, answer)` sends an answer. */
  constructor(root, parts, send) {
    this.#root = root;
    this.#parts = parts;
    this.#send = send;
  }

  /** Whether a question can be answered now. */
  get isAsked() {
    return [...this.#questions.values()].some((question) => question.isOpen);
  }

  /** Show a question after `text`, the answer so far. Returns its title; "" if it is shown already. */
  ask(asked, text, onAnswer) {
    if (this.#questions.has(asked.id)) return "";
    const question = new Question(asked, this.#send, (words) => onAnswer(asked.id, words));
    this.#questions.set(asked.id, question);
    this.#parts.insert(question.root, text);
    return question.title;
  }

  /** Offer exactly the questions of `ids`: the run waits for these. */
  offer(ids) {
    for (const [id, question] of this.#questions) {
      if (ids.includes(id)) question.reopen();
      else question.close("elsewhere");
    }
  }

  answer(id, words) {
    this.#questions.get(id)?.showAnswer(words);
  }

  /** Close the open questions: the run went on without this tab ("elsewhere"), or it has ended ("ended"). */
  close(why) {
    for (const question of this.#questions.values()) question.close(why);
  }

  showDeadlines() {
    for (const question of this.#questions.values()) if (question.isOpen) question.showDeadline();
  }

  focusQuestion() {
    [...this.#questions.values()].find((question) => question.isOpen)?.focus();
  }

  /** Note a message that this tab has sent to the run. */
  sent(id, text) {
    if (this.#applied.has(id) || this.#sent.has(id)) return;
    const bubble = element("div", "asked said");
    bubble.append(quote(text), element("p", "note", "Sent. The agent has not read it yet."));
    this.#sent.set(id, { text, bubble });
    this.#part("pending").append(bubble);
    if (this.#unapplied.includes(id)) this.showUnapplied(this.#unapplied); // the run had ended before the reply came
  }

  /** Show messages that the agent has taken, after `text`, the answer so far. Returns their texts. */
  apply(inputs, text) {
    return inputs.map(({ id, message }) => {
      const words = textOf(message?.content);
      this.#applied.add(id);
      this.#sent.get(id)?.bubble.remove();
      this.#sent.delete(id);
      const bubble = element("div", "asked said");
      bubble.append(quote(words));
      this.#parts.insert(bubble, text);
      return words;
    });
  }

  /** Say at the end of the run which messages the agent has not taken, and offer those of this tab as a question. */
  showUnapplied(ids) {
    this.#unapplied = ids;
    for (const { bubble } of this.#sent.values()) bubble.remove();
    if (!ids.length) return;
    this.#part("unread").hidden = false;
    this.#part("unread-text").replaceChildren(...(this.unappliedText ? [quote(this.unappliedText)] : []));
    this.#part("ask-unread").hidden = !this.unappliedText;
    this.#part("unread-words").textContent =
      ids.length === 1 ? "The agent did not read this message:" : `The agent did not read ${ids.length} messages:`;
    if (!this.unappliedText) {
      this.#part("unread-words").textContent = "The agent did not read a message that was sent from another place.";
    }
  }

  /** The messages of this tab that the agent has not taken. */
  get unappliedText() {
    return this.#unapplied.flatMap((id) => this.#sent.get(id)?.text ?? []).join("\n\n");
  }

  #part(name) {
    return this.#root.querySelector(`.${name}`);
  }
}

function quote(text) {
  const words = element("p", "question", text);
  words.dir = "auto";
  return words;
}

/** Return the text of a message's content: a string, or a list of parts. */
function textOf(content) {
  if (typeof content === "string") return content;
  return (Array.isArray(content) ? content : []).map((part) => part?.text ?? `(${part?.type ?? "part"})`).join("\n");
}

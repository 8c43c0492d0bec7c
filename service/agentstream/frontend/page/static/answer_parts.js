// The answer of one run, with the questions of the agent and the messages of people at their places in it.

import { element } from "./dom.js";
import { MarkdownView } from "./markdown.js";

export class AnswerParts {
  #box; // the element that holds the text after the last insertion
  #view;
  #start = 0; // where that text begins in the whole answer

  constructor(box) {
    this.#box = box;
    this.#view = new MarkdownView(box);
  }

  /** Show `text`, the whole answer so far. It must start with the text shown before. */
  show(text) {
    this.#view.show(text.slice(this.#start));
  }

  /** Insert an element after the answer so far. Text that follows is shown after the element. */
  insert(inserted, text) {
    this.show(text);
    if (text.slice(this.#start).trim() === "") {
      this.#box.before(inserted);
      return;
    }
    this.#box.after(inserted);
    this.#box = element("div", "answer");
    inserted.after(this.#box);
    this.#view = new MarkdownView(this.#box);
    this.#start = text.length;
  }
}

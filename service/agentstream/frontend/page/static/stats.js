// The numbers of one run: measured times, and estimated tokens until the server reports its own.

import { isNumber, now, seconds } from "./dom.js";

const CHARACTERS_PER_TOKEN = 4; // the server uses the same estimate; its own numbers replace ours
const MIN_TIMED_S = 0.05; // in less time, tokens per second measures the network, not the model

export class Stats {
  usage = null; // the server's numbers, once it has sent them
  #root;
  #startedAt;
  #firstAt = null;
  #characters = 0;

  /** `startedAt` is the time of the request in seconds, or null if it is unknown. */
  constructor(root, startedAt, model) {
    this.#root = root;
    this.#startedAt = startedAt;
    if (model) this.set("model", model);
  }

  set(name, text) {
    this.#root.querySelector(`[data-stat=${name}]`).textContent = text;
  }

  /** Count a piece of text that arrived at the time `at`, in seconds; null if unknown. */
  count(text, at) {
    this.#firstAt ??= at;
    this.#characters += text.length;
  }

  /** Return the seconds from the request to `at`, or null if one of them is unknown. */
  since(at) {
    return this.#startedAt === null || at === null ? null : at - this.#startedAt;
  }

  showProgress(at = now()) {
    const time = this.since(at);
    if (time !== null) this.set("time", seconds(time));
    if (this.#startedAt !== null && this.#firstAt !== null) this.set("first", seconds(this.#firstAt - this.#startedAt));
    const written = Math.ceil(this.#characters / CHARACTERS_PER_TOKEN);
    if (written === 0) return;
    this.set("tokens", `about ${written} out`);
    const writing = this.#firstAt === null || at === null ? 0 : at - this.#firstAt;
    if (writing >= MIN_TIMED_S) this.set("speed", `about ${(written / writing).toFixed(0)} tokens/s`);
  }

  /** Show the final numbers. `inferenceSeconds` is the time of all inferences; 0 if there were none, null if unknown. */
  end(how, at, inferenceSeconds) {
    this.set("ended", how);
    this.showProgress(at);
    const { prompt_tokens: prompt, completion_tokens: completion } = this.usage ?? {};
    if (!isNumber(prompt) || !isNumber(completion)) return;
    this.set("tokens", `${prompt} in, ${completion} out`);
    // Speed is over the time of the inferences, or over the whole run if the agent reports no inferences.
    const worked = inferenceSeconds === 0 ? this.since(at) : inferenceSeconds;
    if (worked >= MIN_TIMED_S) this.set("speed", `${(completion / worked).toFixed(1)} tokens/s`);
  }
}

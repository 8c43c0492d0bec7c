// Reads the stream of a run to its end and reconnects if necessary.

import { resumeRun } from "./api.js";
import { asText, now } from "./dom.js";
import { comesFromAgent, factsOf } from "./facts.js";
import { Failure } from "./failures.js";
import { SseParser } from "./sse.js";
import { untilItGoesOn } from "./waiting.js";

const MAX_RETRIES = 8; // consecutive, without a message in between; about 50 s with the pauses below
const FIRST_BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 10_000;
const READ_TIMEOUT_MS = 30_000; // the server sends a keepalive every 4 s
const REPLAY_GAP_S = 0.15; // replayed messages arrive without a gap of this length

/**
 * Apply each fact of the run to `exchange`, exactly once. `first` is the response that started the run. Without it, the
 * stream resumes after the exchange's cursor. Reconnects when the connection breaks. Throws Failure if that fails. If the
 * run waits for people, its stream ends; it resumes when the run goes on.
 */
export async function followRun(exchange, first, signal) {
  let response = first;
  let resumed = !first;
  let failures = 0;
  while (!exchange.ended && !signal.aborted) {
    try {
      response ??= await resumeRun(exchange.runId, exchange.cursor, signal);
      for await (const message of readMessages(response, resumed)) {
        failures = 0;
        exchange.showReconnecting(false);
        const facts = factsOf(message);
        if (facts.some(comesFromAgent)) exchange.reachAttempt(parseInt(message.id, 10), message.at);
        for (const fact of facts) exchange.apply(fact, message.at);
        if (message.id) exchange.cursor = message.id;
        if (exchange.ended) break;
      }
      if (exchange.parked) await untilItGoesOn(exchange, signal);
      else if (!exchange.ended) throw broken("the connection closed before the answer was complete");
    } catch (error) {
      failures += 1;
      if (signal.aborted || !error.retryable || !exchange.runId || failures > MAX_RETRIES) throw error;
      exchange.showReconnecting(true);
      await pause(Math.min(FIRST_BACKOFF_MS * 2 ** (failures - 1), MAX_BACKOFF_MS), signal);
    }
    response = null;
    resumed = true;
  }
}

/**
 * Yield the messages of one response. `at` is the arrival time in seconds. It is null for the messages that a resumed
 * stream replays at its start, because they happened earlier, at an unknown time.
 */
async function* readMessages(response, resumed) {
  const parser = new SseParser();
  const reader = response.body.getReader();
  let replaying = resumed;
  let readAt = null;
  try {
    for (;;) {
      const silence = setTimeout(() => reader.cancel(), READ_TIMEOUT_MS); // this ends the read
      const { value, done } = await reader
        .read()
        .catch((cause) => {
          throw broken(asText(cause.message));
        })
        .finally(() => clearTimeout(silence));
      if (done) return;
      if (readAt !== null && now() - readAt > REPLAY_GAP_S) replaying = false;
      for (const message of parser.push(value)) yield { ...message, at: replaying ? null : now() };
      readAt = now();
    }
  } finally {
    await reader.cancel().catch(() => {}); // fails if the connection is broken already
  }
}

const broken = (reason) => new Failure("The connection to the server broke.", { reason, retryable: true });

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

// Reading a run's stream to its end, over as many connections as that takes.

import { Failure, resumeRun } from "./api.js";
import { now } from "./dom.js";
import { factsOf } from "./facts.js";
import { SseParser } from "./sse.js";

const MAX_RETRIES = 8; // in a row without a message; with the pauses below that is about 50 s
const FIRST_BACKOFF_MS = 500;
const MAX_BACKOFF_MS = 10_000;
const READ_TIMEOUT_MS = 30_000; // a server that lives says something every 4 s
const REPLAY_GAP_S = 0.15; // what a server reads from its log comes without a pause as long as this

/**
 * Hand every fact of the run to `exchange`, once. `first` is the response that began the run; without one the stream
 * is resumed after the exchange's cursor. A connection that breaks is replaced; raises Failure if that does not help.
 */
export async function followRun(exchange, first, signal) {
  let response = first;
  let resumed = !first;
  let failures = 0;
  while (!exchange.ended) {
    try {
      response ??= await resumeRun(exchange.runId, exchange.cursor, signal);
      for await (const message of readMessages(response, resumed)) {
        failures = 0;
        exchange.showReconnecting(false);
        for (const fact of factsOf(message)) exchange.apply(fact, message.at);
        if (message.id) exchange.cursor = message.id;
        if (exchange.ended) break;
      }
      if (!exchange.ended) throw new Failure("The connection closed before the answer was complete.", { retryable: true });
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
 * The messages of one response. `at` is when one came, in seconds; null for what a resumed stream told at once,
 * because that happened earlier, nobody here knows when.
 */
async function* readMessages(response, resumed) {
  const parser = new SseParser();
  const reader = response.body.getReader();
  let replaying = resumed;
  let asked = null;
  try {
    for (;;) {
      const silence = setTimeout(() => reader.cancel(), READ_TIMEOUT_MS); // the read then ends
      const { value, done } = await reader
        .read()
        .catch((cause) => {
          throw new Failure(`The connection broke while the answer was streaming (${cause.message}).`, { retryable: true });
        })
        .finally(() => clearTimeout(silence));
      if (done) return;
      if (asked !== null && now() - asked > REPLAY_GAP_S) replaying = false;
      for (const message of parser.push(value)) yield { ...message, at: replaying ? null : now() };
      asked = now();
    }
  } finally {
    await reader.cancel().catch(() => {}); // of a connection that broke there is nothing to let go of
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

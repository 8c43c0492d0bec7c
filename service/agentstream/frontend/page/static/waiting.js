// Waits until a run that waits for people goes on. Nothing tells a browser so, and others may answer too.

import { retrieveRun } from "./api.js";

const FIRST_MS = 1000;
const MAX_MS = 10_000; // each look costs the server one read of the run

/** Return when the run of `exchange` waits no longer. Throws Failure if the server does not know it any more. */
export async function untilItGoesOn(exchange, signal) {
  for (let pause = FIRST_MS; !signal.aborted; pause = Math.min(pause * 1.5, MAX_MS)) {
    await somethingHappens(exchange, pause, signal);
    if (signal.aborted) return;
    try {
      const { status, interrupts } = await retrieveRun(exchange.runId, signal);
      exchange.showReconnecting(false);
      if (status !== "requires_action") return;
      exchange.offer(interrupts);
    } catch (error) {
      if (signal.aborted) return;
      if (!error.retryable) throw error;
      exchange.showReconnecting(true);
    }
  }
}

/** Wait for a nudge of the exchange, for the page to be shown again, or for `ms` while it is shown. */
function somethingHappens(exchange, ms, signal) {
  return new Promise((resolve) => {
    const finish = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onVisible);
      signal.removeEventListener("abort", finish);
      exchange.nudge = () => {};
      resolve();
    };
    const onVisible = () => document.hidden || finish();
    const timer = setTimeout(() => document.hidden || finish(), ms);
    document.addEventListener("visibilitychange", onVisible);
    signal.addEventListener("abort", finish);
    exchange.nudge = finish;
  });
}

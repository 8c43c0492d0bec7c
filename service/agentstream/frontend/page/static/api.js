// Calls the server's routes and turns error responses into failures for the user.

import { asText } from "./dom.js";
import { Failure, explain } from "./failures.js";
import { read, write } from "./storage.js";

const RUN_ID = /^chatcmpl-[0-9a-f]{32}$/;
const RESPONSE_TIMEOUT_MS = 60_000; // until the response begins; a cancel can take 24 s, other requests 5 s
const KEY_ITEM = "agentstream.key";
const RETRYABLE = [502, 503, 504];

export const isRunId = (text) => RUN_ID.test(text);
export const apiKey = () => read(KEY_ITEM);
export const storeApiKey = (key) => write(KEY_ITEM, key);

/** Start a run and return its streamed response. It is a background run, so that it continues during a reload. */
export function startRun(body, signal) {
  return requestStream("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, background: true }),
    signal,
  });
}

/** Return the stream of a run after `cursor`; from its start if `cursor` is "". */
export function resumeRun(runId, cursor, signal) {
  const query = new URLSearchParams({ stream: "true" });
  if (cursor) query.set("starting_after", cursor);
  return requestStream(`v1/chat/completions/${runId}?${query}`, { signal });
}

/** Cancel a run. Returns after the run has ended. */
export const cancelRun = (runId) => request(`v1/chat/completions/${runId}/cancel`, { method: "POST" });

/** Return the state of a run. */
export async function retrieveRun(runId, signal) {
  return (await request(`v1/chat/completions/${runId}`, { signal })).json();
}

/**
 * Answer one question of a run. The answer does not stream the rest: others may have answered before, and only a stream
 * after the cursor of this tab misses nothing.
 */
export const answerRun = (runId, id, answer) => post(`v1/chat/completions/${runId}/resume`, { answers: { [id]: answer }, background: true });

/** Send a message to a run that is going on. Returns its id. */
export async function sendInput(runId, text) {
  const response = await post(`v1/chat/completions/${runId}/input`, { messages: [{ role: "user", content: text }] });
  return String((await response.json()).inputs[0]);
}

/** Return the names of the models that have a live worker. */
export async function modelNames() {
  const { data } = await (await request("v1/models")).json();
  return data.map((model) => asText(model.id));
}

const post = (path, body) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

async function requestStream(path, options) {
  const response = await request(path, { ...options, headers: { ...options.headers, "X-Agent-Events": "named" } });
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
  throw new Failure("The server did not answer with an event stream. A proxy in front of it may be set up wrongly.");
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const aborting = new AbortController(); // not AbortSignal.any: Firefox before 124 and Safari before 17.4 lack it
  const abort = () => aborting.abort();
  const timer = setTimeout(abort, RESPONSE_TIMEOUT_MS);
  if (options.signal?.aborted) abort();
  options.signal?.addEventListener("abort", abort, { once: true });
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal: aborting.signal, cache: "no-store" });
  } catch (cause) {
    const words = "The server cannot be reached. Check that it runs, and that this device is online.";
    throw new Failure(words, { reason: asText(cause.message), retryable: true });
  } finally {
    clearTimeout(timer); // a stream may take longer
  }
  if (!response.ok) throw await failureFrom(response);
  return response;
}

async function failureFrom(response) {
  const { status } = response;
  const body = await response.text().catch(() => "");
  const error = parseJsonObject(body)?.error ?? (body.slice(0, 300) || response.statusText);
  const { message, reason } = explain(error, status, response.headers.get("retry-after") ?? "");
  return new Failure(message, { reason, status, retryable: RETRYABLE.includes(status), code: asText(error?.code ?? "") });
}

/** Parse JSON text and return the object; null if the text is not a JSON object. */
export function parseJsonObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

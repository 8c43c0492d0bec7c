// Calls the server's routes and turns error responses into messages for the user.

import { asText } from "./dom.js";

const RUN_ID = /^chatcmpl-[0-9a-f]{32}$/;
const RESPONSE_TIMEOUT_MS = 60_000; // until the response begins; a cancel can take 24 s, other requests 5 s
const KEY_ITEM = "agentstream.key";

/** An error whose message is shown to the user. */
export class Failure extends Error {
  /** `status` is the HTTP status, or 0 if there was no response. If `retryable` is true, a retry may help. */
  constructor(message, { status = 0, retryable = false } = {}) {
    super(message);
    this.status = status;
    this.retryable = retryable;
  }
}

export const isRunId = (text) => RUN_ID.test(text);
export const apiKey = () => sessionStorage.getItem(KEY_ITEM) ?? "";
export const storeApiKey = (key) => sessionStorage.setItem(KEY_ITEM, key);

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

/** Return the names of the models that have a live worker. */
export async function modelNames() {
  const { data } = await (await request("v1/models")).json();
  return data.map((model) => asText(model.id));
}

async function requestStream(path, options) {
  const response = await request(path, { ...options, headers: { ...options.headers, "X-Agent-Events": "named" } });
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
  throw new Failure("The server did not answer with an event stream.");
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const waiting = new AbortController();
  const timer = setTimeout(() => waiting.abort(new Error("no answer within a minute")), RESPONSE_TIMEOUT_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, waiting.signal]) : waiting.signal;
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
  } catch (cause) {
    throw new Failure(`The server cannot be reached (${cause.message}).`, { retryable: true });
  } finally {
    clearTimeout(timer); // a stream may take longer
  }
  if (!response.ok) throw await failureFrom(response);
  return response;
}

async function failureFrom(response) {
  const body = await response.text().catch(() => "");
  const error = parseJsonObject(body)?.error;
  const retry = response.headers.get("retry-after");
  const reason = error ? errorText(error) : body.slice(0, 300) || response.statusText || "no reason given";
  const message = `${response.status}: ${reason}${retry ? ` Try again in ${retry} s.` : ""}`;
  return new Failure(message, { status: response.status, retryable: [502, 503, 504].includes(response.status) });
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

/** Return one sentence for an error object in OpenAI's format, or for any other value in its place. */
export function errorText(error) {
  if (typeof error !== "object" || error === null) return asText(error);
  const labels = [error.code ?? error.type, error.param && `parameter ${asText(error.param)}`].filter(Boolean);
  const message = error.message ? asText(error.message) : "The server gave no reason.";
  return labels.length ? `${message} (${labels.map(asText).join(", ")})` : message;
}

// The server's routes as this page uses them, and its refusals in words.

import { asText } from "./dom.js";

const RUN_ID = /^chatcmpl-[0-9a-f]{32}$/;
const RESPONSE_TIMEOUT_MS = 60_000; // for an answer to begin: a cancel may take 24 s, all else 5
const KEY_ITEM = "agentstream.key";

/** What went wrong, in words for the person in front of the page. */
export class Failure extends Error {
  /** `status` is HTTP's, 0 without an answer; `retryable` says that trying again may help. */
  constructor(message, { status = 0, retryable = false } = {}) {
    super(message);
    this.status = status;
    this.retryable = retryable;
  }
}

export const isRunId = (text) => RUN_ID.test(text);
export const apiKey = () => sessionStorage.getItem(KEY_ITEM) ?? "";
export const storeApiKey = (key) => sessionStorage.setItem(KEY_ITEM, key);

/** Start a run that outlives this page, so that a reload can take it up again; returns the streamed response. */
export function startRun(body, signal) {
  return requestStream("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, background: true }),
    signal,
  });
}

/** A run's stream from the frame after `cursor` on, from its start if that is "". */
export function resumeRun(runId, cursor, signal) {
  const query = new URLSearchParams({ stream: "true" });
  if (cursor) query.set("starting_after", cursor);
  return requestStream(`v1/chat/completions/${runId}?${query}`, { signal });
}

/** End a run; returns when it has ended. */
export const cancelRun = (runId) => request(`v1/chat/completions/${runId}/cancel`, { method: "POST" });

/** The names of the models that have a live worker. */
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
    clearTimeout(timer); // a stream may go on for longer
  }
  if (!response.ok) throw await failureFrom(response);
  return response;
}

async function failureFrom(response) {
  const body = await response.text().catch(() => "");
  const error = parseJsonObject(body)?.error;
  const retry = response.headers.get("retry-after");
  const reason = error ? errorText(error) : body.slice(0, 300) || response.statusText || "no explanation";
  const message = `${response.status}: ${reason}${retry ? ` Try again in ${retry} s.` : ""}`;
  return new Failure(message, { status: response.status, retryable: [502, 503, 504].includes(response.status) });
}

/** JSON text as an object; null for everything else. */
export function parseJsonObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" ? value : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** One sentence from an OpenAI-shaped error object (or from whatever came in its place). */
export function errorText(error) {
  if (typeof error !== "object" || error === null) return asText(error);
  const labels = [error.code ?? error.type, error.param && `parameter ${asText(error.param)}`].filter(Boolean);
  const message = error.message ? asText(error.message) : "The server gave no reason.";
  return labels.length ? `${message} (${labels.map(asText).join(", ")})` : message;
}

// Turns an error into a sentence for users. The server's own message is kept as the reason.

import { asText } from "./dom.js";

const WORDS = new Map(Object.entries({
  agent_error: "The agent failed.",
  already_answered: "Somebody else has answered this question.",
  broker_unavailable: "The service cannot reach its database now. Try again in a moment.",
  context_length_exceeded: "The conversation is longer than the model can read. Start a new chat, or ask a shorter question.",
  forbidden_host: "The server does not answer under this address.",
  frontend_unavailable: "The service cannot be reached now. Try again in a moment.",
  headers_too_large: "The browser sends too many cookies to this address.",
  idempotency_key_reused: "The server has already got another question with this id. Ask again.",
  input_not_taken: "The agent takes no messages now. Your text stays in the field: send it after the answer.",
  internal_error: "The server failed.",
  interrupt_expired: "The time to answer is over.",
  invalid_agent_output: "The agent gave an answer that cannot be sent.",
  invalid_api_key: "This server needs an API key. Enter a valid one.",
  invalid_json: "The server could not read the request.",
  invalid_request: "The worker could not read the request.",
  method_not_allowed: "The server does not support this request.",
  model_error: "The model refused the request.",
  model_not_found: "No such agent is running. Choose another one.",
  not_waiting: "The agent does not wait for an answer now.",
  not_found: "The server does not know this run or agent. It may have expired, or belong to another API key.",
  previous_response_not_found: "The server does not keep the earlier answer any more. Start a new chat.",
  queue_full: "All agents are busy, and too many requests wait already.",
  queue_timeout: "No worker was free in time.",
  rate_limit_exceeded: "You have sent too many requests for now.",
  request_too_large: "The conversation is too long for this server. Start a new chat, or ask a shorter question.",
  request_timeout: "The connection is too slow: the request did not arrive in time.",
  run_not_ended: "The run did not stop in time. It may still end.",
  resume_failed: "The worker that ran the agent was lost, and another one could not continue the answer.",
  run_timeout: "The agent took too long, so it was stopped.",
  stream_lost: "The server can no longer read this answer.",
  stream_trimmed: "The server does not keep this answer any more.",
  too_much_input: "You have sent as many messages as one run takes. Your text stays in the field.",
  too_many_connections: "The server has too many visitors now. Try again in a moment.",
  unsupported_media_type: "The server does not accept this form of request.",
  worker_lost: "The worker that ran the agent was lost, so the answer is incomplete.",
  worker_shutdown: "The worker that ran the agent was stopped, so the answer is incomplete.",
}));

const WORDS_OF_STATUS = {
  401: WORDS.get("invalid_api_key"),
  404: WORDS.get("not_found"),
  413: WORDS.get("request_too_large"),
  429: WORDS.get("queue_full"),
  502: WORDS.get("frontend_unavailable"),
  503: WORDS.get("frontend_unavailable"),
  504: "The server did not answer in time.",
};

/** An error that is shown to the user: `message` in words for people, `reason` in the words of its source. */
export class Failure extends Error {
  /** `status` is the HTTP status, or 0 if there was no response. If `retryable` is true, a retry may help. */
  constructor(message, { reason = "", status = 0, retryable = false, code = "" } = {}) {
    super(message);
    this.code = code; // of the server's error
    this.reason = reason;
    this.status = status;
    this.retryable = retryable;
  }
}

/**
 * Return { message, reason } for an error object in OpenAI's format, or for any other value in its place. `status` is
 * the HTTP status, or 0 for the error of a run.
 */
export function explain(error, status = 0, retryAfter = "") {
  const code = asText(error?.code ?? error?.type ?? "");
  const known = WORDS.get(code) ?? WORDS_OF_STATUS[status];
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : "";
  const words = known ?? (status >= 500 ? "The server failed." : status ? "The server refused the request." : "The run failed.");
  return { message: `${words}${wait}`, reason: reasonOf(error, code, status) };
}

function reasonOf(error, code, status) {
  const isObject = typeof error === "object" && error !== null;
  const message = asText(isObject ? (error.message ?? "") : error) || "The server gave no reason.";
  const labels = [code, isObject && error.param && `parameter ${asText(error.param)}`, status && `HTTP ${status}`];
  const shown = labels.filter(Boolean);
  return shown.length ? `${message} (${shown.join(", ")})` : message;
}

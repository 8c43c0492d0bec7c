// Converts the frames of a stream to facts: small plain objects that an exchange applies and session storage keeps.

import { parseJsonObject } from "./api.js";
import { Failure, explain } from "./failures.js";

/**
 * Return the facts of one frame of a stream, in order. Each is an object with a `kind`: `run` (id), `text` and
 * `reasoning` (text), `event` (event, data), `call` (call: a delta of a call of the client's tool), `usage` (usage),
 * `finish` (reason), `parked` (interrupts: the run waits for people), `unapplied` (ids of messages to the run that its
 * agent has not taken), `cancelled`, `failed` (message, reason), `done`. Throws Failure if the data is not a JSON object.
 * A fact of the kind `takeover` (pause) comes from the ids of frames; see `Exchange.reachAttempt`. The page adds the
 * facts `answered` (id, words) and `sent` (id, text) itself.
 */
export function factsOf({ event, data, hasId }) {
  if (data === "[DONE]") return [{ kind: "done" }];
  const body = parseJsonObject(data);
  if (body === null) throw new Failure("The server sent data that is no JSON object.", { reason: data.slice(0, 80) });
  if (body.error) return [ending(body.error)];
  if (event !== "message") return [{ kind: "event", event, data: withoutChunkFields(body) }];
  const choice = body.choices?.[0];
  const delta = choice?.delta ?? {};
  const facts = [];
  if (delta.role) facts.push({ kind: "run", id: body.id });
  if (body.usage) facts.push({ kind: "usage", usage: body.usage });
  if (body.unapplied_inputs?.length) facts.push({ kind: "unapplied", ids: body.unapplied_inputs.map(String) });
  if (body.status === "requires_action" && Array.isArray(body.interrupts)) {
    facts.push({ kind: "parked", interrupts: body.interrupts });
    return facts;
  }
  if (body.agent_error) {
    // The error sentence is also sent as content, so that stock clients show it. Here it is not part of the answer.
    facts.push(ending(body.agent_error));
    return facts;
  }
  if (delta.reasoning_content) facts.push({ kind: "reasoning", text: String(delta.reasoning_content) });
  // Text without a position is not part of the answer: it says in words what the run waits for.
  if (delta.content && hasId) facts.push({ kind: "text", text: String(delta.content) });
  for (const call of Array.isArray(delta.tool_calls) ? delta.tool_calls : []) facts.push({ kind: "call", call });
  if (choice?.finish_reason) facts.push({ kind: "finish", reason: String(choice.finish_reason) });
  return facts;
}

/** Whether a fact shows that the agent runs. The server itself may send line breaks, results of tools and the end. */
export function comesFromAgent({ kind, text, event }) {
  if (kind === "text") return text.trim() !== "";
  return kind === "reasoning" || kind === "call" || kind === "finish" || (kind === "event" && event !== "tool_results");
}

function ending(error) {
  return error.code === "cancelled" ? { kind: "cancelled" } : { kind: "failed", ...explain(error) };
}

/** Return the fields of the event. The server renames fields that clash with chunk fields, such as `id` to `event_id`. */
function withoutChunkFields({ id, object, created, choices, ...fields }) {
  return fields;
}

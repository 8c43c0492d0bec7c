// An agent in JavaScript. It reads the request from standard input and writes JSON lines to standard output.
import { setTimeout as pause } from "node:timers/promises";
import { text } from "node:stream/consumers";

const { request, restored } = JSON.parse(await text(process.stdin));
const write = (type, fields) => process.stdout.write(JSON.stringify({ type, ...fields }) + "\n");
const question = request.messages.at(-1).content;
const count = question.split(/\s+/).length;

if (!restored?.state) { // no checkpoint yet: this tool may run twice
  const shown = restored?.events.map((event) => event.type) ?? [];
  const call = { tool: "count_words", tool_call_id: "call-1" };
  if (!shown.includes("tool_call_start")) write("tool_call_start", { ...call, arguments: { text: question } });
  if (!shown.includes("tool_call_end")) write("tool_call_end", { ...call, success: true, latency: 0, result: `${count}` });
}
const said = (restored?.state?.said ?? "") + (restored?.text ?? ""); // clients have seen this, from another worker
write("checkpoint", { state: { said } });
for (const word of `You wrote ${count} words . `.slice(said.length).match(/\S* /g) ?? []) {
  write("text", { text: word });
  await pause(200);
}
write("result", { usage: { prompt_tokens: count, completion_tokens: 5, total_tokens: count + 5 } });

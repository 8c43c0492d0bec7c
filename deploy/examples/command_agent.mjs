// An agent in JavaScript: a request on standard input, JSON lines on standard output.
import { setTimeout as pause } from "node:timers/promises";
import { text } from "node:stream/consumers";

const { request } = JSON.parse(await text(process.stdin));
const say = (type, fields) => process.stdout.write(JSON.stringify({ type, ...fields }) + "\n");
const question = request.messages.at(-1).content;

say("tool_call_start", { tool: "count_words", arguments: { text: question }, tool_call_id: "call-1" });
const count = question.split(/\s+/).length;
say("tool_call_end", { tool: "count_words", success: true, latency: 0, result: `${count}`, tool_call_id: "call-1" });

for (const word of `You wrote ${count} words .`.split(" ")) {
  say("text", { text: word + " " });
  await pause(200);
}
say("result", { usage: { prompt_tokens: count, completion_tokens: 5, total_tokens: count + 5 } });

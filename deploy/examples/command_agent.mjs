// An agent in JavaScript. It reads the request from standard input and writes JSON lines to standard output.
import { setTimeout as pause } from "node:timers/promises";
import { text } from "node:stream/consumers";

const { request } = JSON.parse(await text(process.stdin));
const write = (type, fields) => process.stdout.write(JSON.stringify({ type, ...fields }) + "\n");
const question = request.messages.at(-1).content;

write("tool_call_start", { tool: "count_words", arguments: { text: question }, tool_call_id: "call-1" });
const count = question.split(/\s+/).length;
write("tool_call_end", { tool: "count_words", success: true, latency: 0, result: `${count}`, tool_call_id: "call-1" });

for (const word of `You wrote ${count} words .`.split(" ")) {
  write("text", { text: word + " " });
  await pause(200);
}
write("result", { usage: { prompt_tokens: count, completion_tokens: 5, total_tokens: count + 5 } });

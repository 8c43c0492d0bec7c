// @langchain/openai.

import { HumanMessage, ToolMessage } from '@langchain/core/messages';
import { tool } from '@langchain/core/tools';
import { ChatOpenAI } from '@langchain/openai';
import { z } from 'zod';

import { BASE_URL, CANCEL_AFTER_PIECES, counts, drive } from './reporting.mjs';

const at = { model: 'm1', apiKey: 'none', configuration: { baseURL: `${BASE_URL}/v1` } };
const model = new ChatOpenAI(at);
const TOKENS = ['input_tokens', 'output_tokens', 'total_tokens'];

function record(seen, message) {
  const { finish_reason: finish } = message.response_metadata; // the Responses API has none
  seen.record({ ...(finish && { finish }), usage: counts(message.usage_metadata, TOKENS) });
}

// The loop of its documentation. It concatenates the chunks to get the complete message.
async function streamed(seen, runnable, asked) {
  let whole;
  for await (const chunk of await runnable.stream(asked)) {
    seen.add(chunk.text);
    whole = whole ? whole.concat(chunk) : chunk;
  }
  record(seen, whole);
  return whole;
}

await drive({
  loop: (seen) => streamed(seen, model, 'streamed'),
  safe: (seen) => streamed(seen, new ChatOpenAI({ ...at, streamUsage: false }), 'replayed'),

  async helper(seen) {
    for await (const event of model.streamEvents('streamed', { version: 'v2' })) {
      if (event.event === 'on_chat_model_stream') seen.add(event.data.chunk.text);
      if (event.event === 'on_chat_model_end') record(seen, event.data.output);
    }
  },

  async whole(seen) {
    const message = await model.invoke('streamed');
    seen.add(message.text);
    record(seen, message);
  },

  tools: (seen) => streamed(seen, model, 'tools'),
  waits: (seen) => streamed(seen, model, 'waits'),
  error: (seen) => streamed(seen, model, 'error'),
  silent: (seen) => streamed(seen, model, 'silent'),

  async cancel(seen) {
    for await (const chunk of await model.stream('slow')) {
      seen.add(chunk.text);
      if (seen.fields.pieces === CANCEL_AFTER_PIECES) break;
    }
  },

  'client tools': ['tools', async (seen) => {
    const weather = tool(({ city }) => `sunny in ${city}`, { name: 'weather', schema: z.object({ city: z.string() }) });
    const bound = model.bindTools([weather]);
    const asked = new HumanMessage('weather');
    const quiet = { add() {}, record() {} };
    const message = await streamed(quiet, bound, [asked]);
    const [call] = message.tool_calls;
    seen.record({ call: [call.name, call.args] });
    const result = new ToolMessage({ content: await weather.invoke(call.args), tool_call_id: call.id });
    await streamed(seen, bound, [asked, message, result]);
  }],

  responses: ['responses', (seen) => streamed(seen, new ChatOpenAI({ ...at, useResponsesApi: true }), 'tools')],
});

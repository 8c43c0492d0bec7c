// openai-node, in any release.

import { BASE_URL, CANCEL_AFTER_PIECES, PACKAGE, WEATHER, counts, drive } from './reporting.mjs';

const { default: OpenAI } = await import(PACKAGE);
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: 'none' });
const ask = (content, more) =>
  client.chat.completions.create({ model: 'm1', messages: [{ role: 'user', content }], ...more });

// The loop of the README. It expects a choice in every chunk.
async function readmeLoop(seen, scenario) {
  for await (const chunk of await ask(scenario, { stream: true })) {
    seen.add(chunk.choices[0].delta.content ?? '');
    seen.record({ finish: chunk.choices[0].finish_reason, usage: counts(chunk.usage) });
  }
}

await drive({
  loop: (seen) => readmeLoop(seen, 'streamed'),

  // A loop that requests usage and accepts OpenAI's usage chunk, which has no choices.
  async safe(seen) {
    for await (const chunk of await ask('replayed', { stream: true, stream_options: { include_usage: true } })) {
      seen.add(chunk.choices[0]?.delta?.content);
      if (chunk.choices.length) seen.record({ finish: chunk.choices[0].finish_reason });
      seen.record({ usage: counts(chunk.usage) });
    }
  },

  async helper(seen) {
    const completions = client.chat.completions.stream ? client.chat.completions : client.beta.chat.completions;
    const stream = completions.stream({ model: 'm1', messages: [{ role: 'user', content: 'streamed' }] });
    stream.on('content', (delta) => seen.add(delta));
    const final = await stream.finalChatCompletion();
    seen.record({ finish: final.choices[0].finish_reason, usage: counts(final.usage) });
  },

  async whole(seen) {
    const completion = await ask('streamed');
    seen.add(completion.choices[0].message.content);
    seen.record({ finish: completion.choices[0].finish_reason, usage: counts(completion.usage) });
  },

  tools: (seen) => readmeLoop(seen, 'tools'),
  waits: (seen) => readmeLoop(seen, 'waits'),
  error: (seen) => readmeLoop(seen, 'error'),
  silent: (seen) => readmeLoop(seen, 'silent'),

  async cancel(seen) {
    for await (const chunk of await ask('slow', { stream: true })) {
      seen.add(chunk.choices[0].delta.content);
      if (seen.fields.pieces === CANCEL_AFTER_PIECES) break;
    }
  },

  'client tools': ['tools', async (seen) => {
    const runner = (client.chat.completions.runTools ? client.chat.completions : client.beta.chat.completions).runTools({
      model: 'm1',
      stream: true,
      messages: [{ role: 'user', content: 'weather' }],
      tools: [{
        type: 'function',
        function: {
          ...WEATHER.function,
          parse: JSON.parse,
          function({ city }) {
            seen.record({ call: ['weather', { city }] });
            return `sunny in ${city}`;
          },
        },
      }],
    });
    runner.on('content', (delta) => seen.add(delta));
    const final = await runner.finalChatCompletion();
    seen.record({ finish: final.choices[0].finish_reason, usage: counts(final.usage) });
  }],

  responses: ['responses', async (seen) => {
    for await (const event of await client.responses.create({ model: 'm1', input: 'tools', stream: true })) {
      if (event.type === 'response.output_text.delta') seen.add(event.delta);
      if (event.type === 'response.completed') {
        seen.record({ usage: counts(event.response.usage, ['input_tokens', 'output_tokens', 'total_tokens']) });
      }
    }
  }],

  completions: ['completions', async (seen) => {
    for await (const chunk of await client.completions.create({ model: 'm1', prompt: 'streamed', stream: true })) {
      seen.add(chunk.choices[0].text);
      seen.record({ finish: chunk.choices[0].finish_reason, usage: counts(chunk.usage) });
    }
  }],
});

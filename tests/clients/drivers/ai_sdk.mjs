// The AI SDK with one of its providers. PACKAGE has the form `ai-sdk-<provider>-<release of the SDK>`.

import { z } from 'zod';

import { BASE_URL, CANCEL_AFTER_PIECES, PACKAGE, drive } from './reporting.mjs';

const [, provider, release] = PACKAGE.match(/^ai-sdk-(.*)-(\d)$/);
const { generateText, isStepCount, stepCountIs, streamText, tool } = await import(`ai-${release}`);
const { createOpenAI, createOpenAICompatible } = await import(PACKAGE);
const at = { baseURL: `${BASE_URL}/v1`, apiKey: 'none' };
const openai = provider === 'openai' && createOpenAI(at);
const chat = openai ? openai.chat('m1') : createOpenAICompatible({ ...at, name: 'agentstream' })('m1');
const asking = openai ? chat : createOpenAICompatible({ ...at, name: 'agentstream', includeUsage: true })('m1');

async function record(seen, result) {
  const usage = await result.usage;
  seen.record({ finish: await result.finishReason, usage: [usage.inputTokens, usage.outputTokens, usage.totalTokens] });
}

// Reads every part of the stream. This SDK reports errors as error parts.
async function streamed(seen, model, prompt, more = {}) {
  const result = streamText({ model, prompt, onError() {}, ...more });
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') seen.add(part.text);
    if (part.type === 'error') throw part.error;
  }
  await record(seen, result);
}

await drive({
  loop: (seen) => streamed(seen, chat, 'streamed'),
  safe: (seen) => streamed(seen, asking, 'replayed'),

  async helper(seen) {
    const result = streamText({ model: chat, prompt: 'streamed', onError: ({ error }) => { throw error; } });
    for await (const text of result.textStream) seen.add(text);
    await record(seen, result);
  },

  async whole(seen) {
    const result = await generateText({ model: chat, prompt: 'streamed' });
    seen.add(result.text);
    await record(seen, result);
  },

  tools: (seen) => streamed(seen, chat, 'tools'),
  waits: (seen) => streamed(seen, chat, 'waits'),
  error: (seen) => streamed(seen, chat, 'error'),
  silent: (seen) => streamed(seen, chat, 'silent'),

  async cancel(seen) {
    const stop = new AbortController();
    const result = streamText({ model: chat, prompt: 'slow', abortSignal: stop.signal, onError() {} });
    for await (const part of result.fullStream) {
      if (part.type === 'error') throw part.error;
      if (part.type === 'text-delta') seen.add(part.text);
      if (seen.fields.pieces === CANCEL_AFTER_PIECES) stop.abort();
    }
  },

  'client tools': ['tools', (seen) => streamed(seen, chat, 'weather', {
    stopWhen: (stepCountIs ?? isStepCount)(3),
    tools: {
      weather: tool({
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => {
          seen.record({ call: ['weather', { city }] });
          return `sunny in ${city}`;
        },
      }),
    },
  })],

  ...(openai && {
    responses: ['responses', (seen) => streamed(seen, openai('m1'), 'tools')],
    completions: ['completions', (seen) => streamed(seen, openai.completion('m1'), 'streamed')],
  }),
});

// eventsource-parser with fetch. Reads every message with its event name.

import { EventSourceParserStream } from 'eventsource-parser/stream';

import { BASE_URL, CANCEL_AFTER_PIECES, counts, drive } from './reporting.mjs';

function post(content, more) {
  return fetch(`${BASE_URL}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ model: 'm1', messages: [{ role: 'user', content }], ...more }),
  });
}

async function streamed(seen, scenario, { skipNamed = false, enough, ...more } = {}) {
  const response = await post(scenario, { stream: true, ...more });
  const messages = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  for await (const message of messages) {
    if (message.data === '[DONE]') return;
    if (skipNamed && message.event) continue;
    const chunk = JSON.parse(message.data);
    for (const choice of chunk.choices) {
      seen.add(choice.delta.content);
      seen.record({ finish: choice.finish_reason });
    }
    seen.record({ usage: counts(chunk.usage) });
    if (seen.fields.pieces === enough) return;
  }
  throw new Error('the stream ended without [DONE]');
}

await drive({
  loop: (seen) => streamed(seen, 'streamed'),
  safe: (seen) => streamed(seen, 'replayed', { skipNamed: true, stream_options: { include_usage: true } }),

  async whole(seen) {
    const completion = await (await post('streamed')).json();
    seen.add(completion.choices[0].message.content);
    seen.record({ finish: completion.choices[0].finish_reason, usage: counts(completion.usage) });
  },

  tools: (seen) => streamed(seen, 'tools'),
  waits: (seen) => streamed(seen, 'waits'),
  error: (seen) => streamed(seen, 'error'),
  silent: (seen) => streamed(seen, 'silent'),
  cancel: (seen) => streamed(seen, 'slow', { enough: CANCEL_AFTER_PIECES }),
});

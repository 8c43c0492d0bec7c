// Shared code of the Node drivers. A driver runs its modes and prints the observations of a user as JSON lines.
//
// Usage: `node driver.mjs BASE_URL PACKAGE [FEATURE ...]`. PACKAGE is the installed name of the client, because a driver
// can run several releases. The features name the abilities of the service beyond plain chat.

import { readFileSync } from 'node:fs';

export const [BASE_URL, PACKAGE, ...FEATURES] = process.argv.slice(2);
export const CANCEL_AFTER_PIECES = 3; // the user stops a long answer after so many pieces

// The observations of a user during one answer.
class Observation {
  #began = performance.now();
  fields = { text: '', pieces: 0, raised: null };

  add(text) {
    if (!text) return;
    this.fields.text += text;
    this.fields.pieces += 1;
    this.fields.first_s ??= Math.round(performance.now() - this.#began) / 1000;
  }

  // Records other facts from the client: usage, finish, call. null does not replace an earlier value. Omit a fact that
  // the client does not report.
  record(facts) {
    for (const [name, value] of Object.entries(facts)) this.fields[name] = value ?? this.fields[name] ?? null;
    if (facts.usage) this.fields.usages = (this.fields.usages ?? 0) + 1;
  }
}

// Returns prompt, completion and total tokens. `names` are the client's names for them.
export function counts(usage, names = ['prompt_tokens', 'completion_tokens', 'total_tokens']) {
  return usage ? names.map((name) => usage[name]) : null;
}

async function attempt(name, run, needs) {
  const seen = new Observation();
  if (needs && !FEATURES.includes(needs)) seen.record({ absent: needs });
  else {
    try {
      await run(seen);
    } catch (error) {
      seen.record({ raised: `${error?.name}: ${error?.message}` });
    }
  }
  console.log(JSON.stringify({ mode: name, ...seen.fields }));
}

// Runs every mode; `silent` runs concurrently with the others. An unhandled rejection counts as raised.
export async function drive(modes) {
  process.on('unhandledRejection', (error) => {
    console.log(JSON.stringify({ mode: 'unhandled', text: '', raised: `${error?.name}: ${error?.message}` }));
  });
  const installed = new URL(`../node_modules/${PACKAGE}/package.json`, import.meta.url);
  console.log(JSON.stringify({ version: JSON.parse(readFileSync(installed)).version }));
  const silent = modes.silent && attempt('silent', modes.silent);
  for (const [name, mode] of Object.entries(modes)) {
    if (name === 'silent') continue;
    await (Array.isArray(mode) ? attempt(name, mode[1], mode[0]) : attempt(name, mode));
  }
  await silent;
  console.log(JSON.stringify({ done: Object.keys(modes).length }));
}

export const WEATHER = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'the weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};

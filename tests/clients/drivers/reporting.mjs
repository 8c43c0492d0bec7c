// What the Node drivers share: a driver runs its modes and prints, as JSON lines, what its user would see.
//
// `node driver.mjs BASE_URL PACKAGE [FEATURE ...]`. PACKAGE is what the client is installed as, for drivers that run
// several releases. The features name what the service can do beyond plain chat.

import { readFileSync } from 'node:fs';

export const [BASE_URL, PACKAGE, ...FEATURES] = process.argv.slice(2);
export const CANCEL_AFTER_PIECES = 3; // pieces of a long answer, after which a user presses stop

// What a user of a client sees of one answer.
class Observation {
  #began = performance.now();
  told = { text: '', pieces: 0, raised: null };

  add(text) {
    if (!text) return;
    this.told.text += text;
    this.told.pieces += 1;
    this.told.first_s ??= Math.round(performance.now() - this.#began) / 1000;
  }

  // Takes what else the client told: usage, finish, call; null takes nothing back. What it cannot tell is absent.
  record(facts) {
    for (const [name, value] of Object.entries(facts)) this.told[name] = value ?? this.told[name] ?? null;
    if (facts.usage) this.told.usages = (this.told.usages ?? 0) + 1;
  }
}

// Returns prompt, completion and total tokens, under the client's names for them.
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
  console.log(JSON.stringify({ mode: name, ...seen.told }));
}

// Runs every mode, the one that is called silent beside the others. A rejection nobody took is a raise as well.
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

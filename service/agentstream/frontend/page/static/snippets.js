// A request as a command or a program, to be pasted elsewhere. Keys are never part of it.

// Characters JSON leaves as they are, but which act on a terminal, end a line, or hide and turn text around.
const UNSAFE_CHARACTERS = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** JSON that is also a Python literal, as long as it holds texts, lists and objects alone. */
function json(value, indent) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const wellFormed = (_key, field) => (typeof field === "string" ? field.toWellFormed() : field);
  return JSON.stringify(value, wellFormed, indent).replace(UNSAFE_CHARACTERS, escaped);
}

/** A POSIX shell word. */
const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** `request` is { model, messages }, `base` the URL of /v1. */
export function asCurl(request, base, withKey) {
  const lines = [`curl -N ${shellQuote(`${base}/chat/completions`)}`, `-H 'Content-Type: application/json'`];
  if (withKey) lines.push('-H "Authorization: Bearer $OPENAI_API_KEY"');
  lines.push(`-d ${shellQuote(json({ ...request, stream: true }, 2))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** The same for the openai package. */
export function asPython({ model, messages }, base, withKey) {
  const key = withKey ? 'os.environ["OPENAI_API_KEY"]' : '"none"';
  return `${withKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${json(base)}, api_key=${key})
stream = client.chat.completions.create(
    model=${json(model)},
    messages=${json(messages, 4).replaceAll("\n", "\n    ")},
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

// Formats a request as a curl command or a Python program for copying. API keys are never included.

// Characters that JSON does not escape, but that control terminals, end lines, or hide or reverse text.
const UNSAFE_CHARACTERS = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Return JSON that is also a Python literal. This holds for strings, lists and objects. */
function json(value, indent) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const wellFormed = (_key, field) => (typeof field === "string" ? field.replace(/\p{Surrogate}/gu, "\ufffd") : field);
  return JSON.stringify(value, wellFormed, indent).replace(UNSAFE_CHARACTERS, escaped);
}

/** Return a text as a quoted POSIX shell word. */
const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return a curl command. `request` is { model, messages }, `base` is the URL of /v1. */
export function asCurl(request, base, withKey) {
  const lines = [`curl -N ${shellQuote(`${base}/chat/completions`)}`, `-H 'Content-Type: application/json'`];
  if (withKey) lines.push('-H "Authorization: Bearer $OPENAI_API_KEY"');
  lines.push(`-d ${shellQuote(json({ ...request, stream: true }, 2))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** Return a Python program that uses the openai package. */
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

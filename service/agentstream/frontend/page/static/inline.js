// The Markdown inside a line: emphasis, code, links and escapes. It never parses HTML and passes none through.

import { element } from "./dom.js";

const MAX_DEPTH = 5; // of nested emphasis
const LOOK_AHEAD = 2000; // characters; a closing mark further away is ignored

const SPECIAL = /[\\`*_~[!h]/g;
const ADDRESS = /https?:\/\/[^\s<>"'`\\]{1,2000}/y;
const WORD = /[\p{L}\p{N}_]/u;

/** Append a text with its emphasis, code, links and escapes to `parent`. */
export function inline(parent, text, { links = true, depth = 0 } = {}) {
  const pattern = new RegExp(SPECIAL);
  let plain = 0; // start of the text that is not appended yet
  let at = 0;
  while (at < text.length) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (!found) break;
    const made = inlineNode(text, found.index, { links, depth });
    if (made) {
      if (found.index > plain) parent.append(text.slice(plain, found.index));
      parent.append(made.node);
      plain = made.end;
    }
    at = made?.end ?? found.index + 1;
  }
  if (plain < text.length) parent.append(text.slice(plain));
}

/** Return the inline element that starts at a special character as { node, end }, or null if there is none. */
function inlineNode(text, at, context) {
  const character = text[at];
  if (character === "\\") return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
  if (character === "`") return codeSpan(text, at);
  if (character === "h") return context.links ? autolink(text, at) : null;
  if (character === "[" || character === "!") return context.links ? link(text, at, context) : null;
  return context.depth < MAX_DEPTH ? emphasis(text, at, context) : null;
}

function codeSpan(text, at) {
  const ticks = /`+/y;
  ticks.lastIndex = at;
  const [mark] = ticks.exec(text);
  const ahead = text.slice(at + mark.length, at + mark.length + LOOK_AHEAD);
  const end = ahead.indexOf(mark);
  if (end < 1 || mark.length > 9) return { node: mark, end: at + mark.length };
  return { node: element("code", "", ahead.slice(0, end)), end: at + end + 2 * mark.length };
}

function emphasis(text, at, context) {
  const character = text[at];
  const mark = text[at + 1] === character ? character + character : character;
  if (mark === "~" || /\s/.test(text[at + mark.length] ?? " ")) return null;
  if (character === "_" && WORD.test(text[at - 1] ?? "")) return null; // a name in snake_case
  const from = at + mark.length;
  const ahead = text.slice(from, from + LOOK_AHEAD);
  for (let end = ahead.indexOf(mark, 1); end > 0; end = ahead.indexOf(mark, end + 1)) {
    const after = ahead[end + mark.length] ?? "";
    if (/\s/.test(ahead[end - 1]) || (character === "_" && WORD.test(after))) continue;
    if (mark.length === 1 && after === character) {
      end += 1; // skip a nested double mark
      continue;
    }
    const node = element(character === "~" ? "del" : mark.length === 2 ? "strong" : "em");
    inline(node, ahead.slice(0, end), { ...context, depth: context.depth + 1 });
    return { node, end: from + end + mark.length };
  }
  return null;
}

function link(text, at, context) {
  const open = text[at] === "!" ? at + 1 : at; // an image becomes a link: the page loads no foreign content
  if (text[open] !== "[") return null;
  const ahead = text.slice(open + 1, open + 1 + LOOK_AHEAD);
  const middle = ahead.indexOf("](");
  const end = ahead.indexOf(")", middle);
  if (middle < 1 || end < 0) return null;
  const target = ahead.slice(middle + 2, end).replace(/\s+"[^"]*"$/, "");
  const node = anchor(target);
  if (!node) return null;
  inline(node, ahead.slice(0, middle), { ...context, links: false });
  return { node, end: open + 1 + end + 1 };
}

function autolink(text, at) {
  ADDRESS.lastIndex = at;
  const target = ADDRESS.exec(text)?.[0].replace(/[.,;:!?)\]*_]{1,50}$/, "");
  const node = target && anchor(target);
  if (!node) return null;
  node.append(target);
  return { node, end: at + target.length };
}

/** Return an absolute URL, or null. (Chrome before 120 lacks URL.canParse.) */
function parsed(target) {
  try {
    return new URL(target);
  } catch {
    return null;
  }
}

/** Return a link to another site, or null if the scheme of the target is not allowed. */
function anchor(target) {
  const url = parsed(target);
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const made = element("a");
  made.href = url.href;
  made.title = url.href; // the text may show another address
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

// The Markdown that answers use, built from elements and text nodes. It never parses HTML and passes none through.

import { element } from "./dom.js";

const MAX_LINE_CHARACTERS = 4000; // a longer line is plain text, so that no pattern runs for long
const MAX_DEPTH = 5; // of nested lists, quotes and emphasis
const LOOK_AHEAD = 2000; // characters; a closing mark further away is ignored

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.+)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|[0-9]{1,9}[.)])[ \t]+(?=\S)/;
const TABLE_RULE = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const INDENT = /^ */;

/** Draws a growing text. Complete blocks are drawn once; only the last block is drawn again. */
export class MarkdownView {
  #root;
  #settled = 0; // number of characters in complete blocks
  #growing = []; // the nodes of the last, incomplete block

  constructor(root) {
    this.#root = root;
  }

  /** Show `text`, which must start with the text shown before. */
  show(text) {
    for (const node of this.#growing) node.remove();
    const end = lastBoundary(text, this.#settled);
    this.#root.append(render(text.slice(this.#settled, end)));
    this.#settled = end;
    const rest = render(text.slice(end));
    this.#growing = [...rest.childNodes];
    this.#root.append(rest);
  }
}

/** Return the last position where a new block surely starts: an unindented line after a blank line, outside a fence. */
function lastBoundary(text, from) {
  let boundary = from;
  let fence = "";
  let blank = false;
  for (let start = from; start < text.length; ) {
    const newline = text.indexOf("\n", start);
    const line = text.slice(start, newline < 0 ? text.length : newline);
    if (blank && !fence && /^\S/.test(line)) boundary = start;
    fence = fenceAfter(line, fence);
    blank = !line.trim();
    if (newline < 0) break;
    start = newline + 1;
  }
  return boundary;
}

/** Return the fence that is open after a line, or "". */
function fenceAfter(line, open) {
  const mark = line.length > MAX_LINE_CHARACTERS ? null : FENCE.exec(line);
  if (!open) return mark?.[1] ?? "";
  return mark && !mark[2].trim() && mark[1].startsWith(open) ? "" : open;
}

/** Return a text as a document fragment of blocks. */
export function render(text) {
  const fragment = document.createDocumentFragment();
  blocks(fragment, text.split("\n"), 0);
  return fragment;
}

function blocks(parent, lines, depth) {
  for (let index = 0; index < lines.length; ) {
    if (!lines[index].trim()) index += 1;
    else index = special(parent, lines, index, depth) ?? paragraph(parent, lines, index);
  }
}

/** Draw the block that starts at a line and return the index of the line after it; null for a paragraph. */
function special(parent, lines, index, depth) {
  const line = lines[index];
  if (line.length > MAX_LINE_CHARACTERS) return null;
  if (FENCE.test(line)) return code(parent, lines, index);
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(heading[1].length + 2, 6); // levels 1 and 2 are the page's own headings
    inline(parent.appendChild(element(`h${level}`)), heading[2].replace(/ #+ *$/, ""));
    return index + 1;
  }
  if (RULE.test(line)) {
    parent.append(element("hr"));
    return index + 1;
  }
  if (line.includes("|") && lines[index + 1]?.includes("-") && isShort(lines[index + 1], TABLE_RULE)) {
    return table(parent, lines, index);
  }
  if (depth >= MAX_DEPTH) return null;
  if (QUOTE.test(line)) return quote(parent, lines, index, depth);
  if (ITEM.test(line)) return list(parent, lines, index, depth);
  return null;
}

const isShort = (line, pattern) => line.length <= MAX_LINE_CHARACTERS && pattern.test(line);
const startsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => isShort(line, pattern));

function paragraph(parent, lines, index) {
  let end = index + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines[end])) end += 1;
  const drawn = element("p");
  drawn.dir = "auto";
  inline(drawn, lines.slice(index, end).join("\n"));
  parent.append(drawn);
  return end;
}

function code(parent, lines, index) {
  const [, fence, language] = FENCE.exec(lines[index]);
  let end = index + 1;
  while (end < lines.length && fenceAfter(lines[end], fence)) end += 1;
  const box = element("figure", "code");
  if (language.trim()) box.append(element("figcaption", "", language.trim().slice(0, 40)));
  const body = element("pre");
  body.tabIndex = 0; // so that the keyboard can scroll wide code
  body.append(element("code", "", lines.slice(index + 1, end).join("\n")));
  box.append(body);
  parent.append(box);
  return end + 1;
}

function quote(parent, lines, index, depth) {
  let end = index;
  while (end < lines.length && isShort(lines[end], QUOTE)) end += 1;
  const drawn = parent.appendChild(element("blockquote"));
  blocks(drawn, lines.slice(index, end).map((line) => line.replace(QUOTE, "")), depth + 1);
  return end;
}

function list(parent, lines, index, depth) {
  const [, indent, bullet] = ITEM.exec(lines[index]);
  const number = Number.parseInt(bullet, 10);
  const ordered = !Number.isNaN(number);
  const drawn = parent.appendChild(element(ordered ? "ol" : "ul"));
  drawn.dir = "auto";
  if (ordered) drawn.start = number;
  let next = index;
  while (next < lines.length) {
    const mark = isShort(lines[next], ITEM) ? ITEM.exec(lines[next]) : null;
    if (!mark || /[0-9]/.test(mark[2]) !== ordered || RULE.test(lines[next])) break;
    const own = [lines[next].slice(mark[0].length)];
    next += 1;
    while (next < lines.length && continuesItem(lines, next, indent.length + 2)) {
      own.push(lines[next].slice(Math.min(mark[0].length, INDENT.exec(lines[next])[0].length)));
      next += 1;
    }
    const item = drawn.appendChild(element("li"));
    blocks(item, own, depth + 1);
    const [only] = item.children;
    if (only?.tagName === "P") only.replaceWith(...only.childNodes); // as a tight list, like most
    while (next < lines.length && !lines[next].trim() && isShort(lines[next + 1] ?? "", ITEM)) next += 1;
  }
  return next;
}

/** Whether a line belongs to the list item before it: it is indented enough, or is plain text directly after text. */
function continuesItem(lines, index, indent) {
  const line = lines[index];
  const isIndented = (other) => INDENT.exec(other)[0].length >= indent;
  if (!line.trim()) return isIndented(lines[index + 1] ?? "");
  if (isIndented(line)) return true;
  return lines[index - 1].trim() !== "" && !startsBlock(line);
}

function table(parent, lines, index) {
  const box = element("div", "table");
  box.tabIndex = 0;
  const drawn = box.appendChild(element("table"));
  row(drawn.appendChild(element("thead")), lines[index], "th");
  const body = drawn.appendChild(element("tbody"));
  let end = index + 2;
  const isRow = (line) => line.includes("|") && line.length <= MAX_LINE_CHARACTERS;
  while (end < lines.length && isRow(lines[end])) row(body, lines[end++], "td");
  parent.append(box);
  return end;
}

function row(parent, line, tag) {
  const drawn = parent.appendChild(element("tr"));
  const cells = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/);
  for (const cell of cells) inline(drawn.appendChild(element(tag)), cell.trim().replaceAll("\\|", "|"));
}

// Inline

const SPECIAL = /[\\`*_~[!h]/g;
const ADDRESS = /https?:\/\/[^\s<>"'`\\]{1,2000}/y;
const WORD = /[\p{L}\p{N}_]/u;

function inline(parent, text, { links = true, depth = 0 } = {}) {
  const pattern = new RegExp(SPECIAL);
  let plain = 0; // start of the text that is not appended yet
  let at = 0;
  while (at < text.length) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (!found) break;
    const made = inlineNode(text, found.index, { links, depth });
    if (made) {
      parent.append(text.slice(plain, found.index), made.node);
      plain = made.end;
    }
    at = made?.end ?? found.index + 1;
  }
  parent.append(text.slice(plain));
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

/** Return a link to another site, or null if the scheme of the target is not allowed. */
function anchor(target) {
  const url = URL.canParse(target) ? new URL(target) : null;
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const made = element("a");
  made.href = url.href;
  made.title = url.href; // the text may show another address
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

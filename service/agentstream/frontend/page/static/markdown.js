// Markdown as far as answers use it, built as elements and text nodes: no HTML is ever parsed, none passes through.

import { element } from "./dom.js";

const LONG_LINE = 4000; // characters; a longer line is text and nothing else, so that no pattern runs for long
const DEEPEST = 5; // lists and quotes within each other
const LOOK_AHEAD = 2000; // characters in which what was opened must be closed

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.+)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|[0-9]{1,9}[.)])[ \t]+(?=\S)/;
const TABLE_RULE = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const INDENT = /^ */;

/** Draws a text that grows: blocks that are complete are drawn once, only the last is drawn again. */
export class MarkdownView {
  #root;
  #settled = 0; // characters in blocks that nothing later can change
  #growing = []; // the nodes of the rest

  constructor(root) {
    this.#root = root;
  }

  /** Show `text`, which begins with what was shown before. */
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

/** The last place after a blank line, outside a fence, where a line begins that continues nothing. */
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

/** The fence that is open after a line, "" if none is. */
function fenceAfter(line, open) {
  const mark = line.length > LONG_LINE ? null : FENCE.exec(line);
  if (!open) return mark?.[1] ?? "";
  return mark && !mark[2].trim() && mark[1].startsWith(open) ? "" : open;
}

/** A text as a fragment of blocks. */
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

/** Draw the block that begins at a line, and return the index after it; null if it is a paragraph. */
function special(parent, lines, index, depth) {
  const line = lines[index];
  if (line.length > LONG_LINE) return null;
  if (FENCE.test(line)) return code(parent, lines, index);
  const heading = HEADING.exec(line);
  if (heading) {
    const level = Math.min(heading[1].length + 2, 6); // the page's own headings are 1 and 2
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
  if (depth >= DEEPEST) return null;
  if (QUOTE.test(line)) return quote(parent, lines, index, depth);
  if (ITEM.test(line)) return list(parent, lines, index, depth);
  return null;
}

const isShort = (line, pattern) => line.length <= LONG_LINE && pattern.test(line);
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
  body.tabIndex = 0; // a wide one scrolls, by keyboard too
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
    if (only?.tagName === "P") only.replaceWith(...only.childNodes); // tight, as most lists are
    while (next < lines.length && !lines[next].trim() && isShort(lines[next + 1] ?? "", ITEM)) next += 1;
  }
  return next;
}

/** Whether a line goes on with the list item before it: it is indented so far, or plain text right after text. */
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
  while (end < lines.length && lines[end].includes("|") && lines[end].length <= LONG_LINE) row(body, lines[end++], "td");
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
  let plain = 0; // where text begins that was not appended yet
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

/** What a special character begins: { node, end }, or null if it is just that character. */
function inlineNode(text, at, context) {
  const character = text[at];
  if (character === "\\") return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
  if (character === "`") return codeSpan(text, at);
  if (character === "h") return context.links ? autolink(text, at) : null;
  if (character === "[" || character === "!") return context.links ? link(text, at, context) : null;
  return context.depth < DEEPEST ? emphasis(text, at, context) : null;
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
  if (character === "_" && WORD.test(text[at - 1] ?? "")) return null; // snake_case is a name
  const from = at + mark.length;
  const ahead = text.slice(from, from + LOOK_AHEAD);
  for (let end = ahead.indexOf(mark, 1); end > 0; end = ahead.indexOf(mark, end + 1)) {
    const after = ahead[end + mark.length] ?? "";
    if (/\s/.test(ahead[end - 1]) || (character === "_" && WORD.test(after))) continue;
    if (mark.length === 1 && after === character) {
      end += 1; // a double mark within
      continue;
    }
    const node = element(character === "~" ? "del" : mark.length === 2 ? "strong" : "em");
    inline(node, ahead.slice(0, end), { ...context, depth: context.depth + 1 });
    return { node, end: from + end + mark.length };
  }
  return null;
}

function link(text, at, context) {
  const open = text[at] === "!" ? at + 1 : at; // an image becomes a link to it: nothing is fetched from elsewhere
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

/** A link to another site, or null if the target is not one that may be followed from here. */
function anchor(target) {
  const url = URL.canParse(target) ? new URL(target) : null;
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const made = element("a");
  made.href = url.href;
  made.title = url.href; // the words may say otherwise
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  return made;
}

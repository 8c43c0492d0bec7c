// The Markdown that answers use, built from elements and text nodes. It never parses HTML and passes none through.

import { button, element } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";
import { keepChildren, patchChildren } from "./patch.js";

const MAX_LINE_CHARACTERS = 4000; // a longer line is plain text, so that no pattern runs for long
const MAX_DEPTH = 5; // of nested lists and quotes

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.+)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|[0-9]{1,9}[.)])[ \t]+(?=\S)/;
const ITEM_START = /^(?:[-*+]|[0-9]{1,9}[.)]?)[ \t]*$/; // may become an item when more text arrives
const TABLE_RULE = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const INDENT = /^ */;

/** Draws a growing text. Complete blocks are drawn once; only the last block is drawn again, in place. */
export class MarkdownView {
  #root;
  #settled = 0; // number of characters in complete blocks
  #nodes = 0; // number of nodes of complete blocks

  constructor(root) {
    this.#root = root;
  }

  /** Show `text`, which must start with the text shown before. */
  show(text) {
    const end = lastBoundary(text, this.#settled);
    const fresh = render(text.slice(this.#settled, end));
    const complete = this.#nodes + fresh.childNodes.length;
    fresh.append(render(text.slice(end)));
    const count = this.#nodes + fresh.childNodes.length;
    patchChildren(this.#root, fresh, this.#nodes);
    keepChildren(this.#root, count);
    this.#settled = end;
    this.#nodes = complete;
  }
}

/**
 * Return the last position where a new block surely starts: an unindented line after a blank line, outside a fence. A
 * further item of a list starts none: it belongs to the list before the blank line.
 */
function lastBoundary(text, from) {
  let boundary = from;
  let fence = "";
  let blank = false;
  let inList = false;
  for (let start = from; start < text.length; ) {
    const newline = text.indexOf("\n", start);
    const line = text.slice(start, newline < 0 ? text.length : newline);
    if (!fence && /^\S/.test(line)) {
      const isItem = (isShort(line, ITEM) && !RULE.test(line)) || (newline < 0 && ITEM_START.test(line));
      if (blank && !(inList && isItem)) boundary = start;
      inList = isItem;
    }
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
  inline(drawn, lines.slice(index, end).map((line) => line.trim()).join("\n"));
  drawn.dir = "auto"; // at the end: with it, browsers read the whole text again for each node that is appended
  parent.append(drawn);
  return end;
}

function code(parent, lines, index) {
  const [, fence, language] = FENCE.exec(lines[index]);
  let end = index + 1;
  while (end < lines.length && fenceAfter(lines[end], fence)) end += 1;
  const [name] = language.trim().split(/\s/);
  const caption = element("figcaption");
  const copy = button("copy-code", "Copy"); // app.js handles the clicks of all these buttons
  copy.setAttribute("aria-label", "Copy code");
  caption.append(element("span", "", name.slice(0, 40)), copy);
  const body = element("pre");
  body.tabIndex = 0; // so that the keyboard can scroll wide code
  highlight(body.appendChild(element("code")), lines.slice(index + 1, end).join("\n"), name);
  const box = element("figure", "code");
  box.append(caption, body);
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
  drawn.dir = "auto";
  return next;
}

/**
 * Whether a line belongs to the list item before it: it is indented enough. Unindented text directly after an item is a
 * paragraph, other than in CommonMark: models do not wrap lines, and they often omit the blank line after a list.
 */
function continuesItem(lines, index, indent) {
  const isIndented = (line) => INDENT.exec(line)[0].length >= indent;
  return isIndented(lines[index].trim() ? lines[index] : (lines[index + 1] ?? ""));
}

function table(parent, lines, index) {
  const box = element("div", "table");
  box.tabIndex = 0;
  const drawn = box.appendChild(element("table"));
  const sides = cellsOf(lines[index + 1]).map(sideOf);
  row(drawn.appendChild(element("thead")), lines[index], "th", sides);
  const body = drawn.appendChild(element("tbody"));
  let end = index + 2;
  const isRow = (line) => line.includes("|") && line.length <= MAX_LINE_CHARACTERS;
  while (end < lines.length && isRow(lines[end])) row(body, lines[end++], "td", sides);
  parent.append(box);
  return end;
}

function row(parent, line, tag, sides) {
  const drawn = parent.appendChild(element("tr"));
  cellsOf(line).forEach((cell, index) => inline(drawn.appendChild(element(tag, sides[index])), cell));
}

/** Return the cells of a table row, without the marks between them. */
function cellsOf(line) {
  const marked = line.trim().replaceAll("\\|", "\0"); // an escaped mark is text
  const cells = marked.replace(/^\|/, "").replace(/\|$/, "").split("|");
  return cells.map((cell) => cell.trim().replaceAll("\0", "|"));
}

/** Return the class for the alignment that a cell of the second row asks for, such as `:-:`; "" for none. */
function sideOf(cell) {
  if (!cell.endsWith(":")) return cell.startsWith(":") ? "left" : "";
  return cell.startsWith(":") ? "center" : "right";
}

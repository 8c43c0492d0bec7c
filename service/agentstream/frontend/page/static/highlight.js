// Colours code: comments, strings, numbers and keywords, by one small pattern for each family of languages.

import { element } from "./dom.js";

const MAX_CHARACTERS = 50_000; // longer code is shown in one colour

const DOUBLE = String.raw`"(?:[^"\\\n]|\\[^])*"?`;
const SINGLE = String.raw`'(?:[^'\\\n]|\\[^])*'?`;
const BACKTICK = "`(?:[^`\\\\]|\\\\[^])*`?";
const TRIPLE = String.raw`"""(?:[^]*?"""|[^]*)|'''(?:[^]*?'''|[^]*)`;
const SLASHES = String.raw`\/\/[^\n]*|\/\*(?:[^]*?\*\/|[^]*)`;
const HASH = String.raw`#[^\n]*`;
const DASHES = String.raw`--[^\n]*|\/\*(?:[^]*?\*\/|[^]*)`;

const C_WORDS =
  "abstract async await bool boolean break byte case catch char class const continue default defer delete do double else " +
  "enum export extends extern false final finally float fn for from func function go if impl implements import in " +
  "instanceof int interface let long loop match mod mut namespace new nil null of override package private protected pub " +
  "public return self short static string struct super switch this throw throws trait true try type typeof undefined " +
  "unsigned use using val var virtual void when where while with yield";
const PYTHON_WORDS =
  "and as assert async await break case class continue def del elif else except False finally for from global if import " +
  "in is lambda match None nonlocal not or pass raise return self True try while with yield";
const SHELL_WORDS =
  "case cd curl do docker done echo elif else esac exit export fi for function git if in kubectl local make pip python " +
  "python3 return set source sudo then until while";
const SQL_WORDS =
  "add all alter and as asc between by case create cross delete desc distinct drop else end exists false from full group " +
  "having if in index inner insert into is join left like limit not null offset on or order outer primary key references " +
  "right select set table then true union unique update using values view when where with";

const family = (comment, strings, words, flags = "") => ({ comment, strings: strings.join("|"), words, flags });
const C = family(SLASHES, [DOUBLE, SINGLE, BACKTICK], C_WORDS);
const PYTHON = family(HASH, [TRIPLE, DOUBLE, SINGLE], PYTHON_WORDS);
const SHELL = family(String.raw`(?:^|(?:[ \t;]))#[^\n]*`, [DOUBLE, SINGLE], SHELL_WORDS, "m");
const SQL = family(DASHES, [SINGLE, DOUBLE], SQL_WORDS, "i");
const DATA = family(HASH, [DOUBLE, SINGLE], "true false null yes no on off");
const JSON_FAMILY = family(SLASHES, [DOUBLE], "true false null");
const MARKUP = family("<!--(?:[^]*?-->|[^]*)", [DOUBLE], "");
const CSS = family(String.raw`\/\*(?:[^]*?\*\/|[^]*)`, [DOUBLE, SINGLE], "important media supports import");

const FAMILIES = new Map();
for (const [languages, its] of [
  ["js javascript jsx mjs ts typescript tsx java c h cpp c++ cc cs csharp go golang rust rs kotlin kt swift scala php dart", C],
  ["py python python3 pyi rb ruby", PYTHON],
  ["sh bash shell zsh console dockerfile makefile", SHELL],
  ["sql postgresql mysql sqlite", SQL],
  ["yaml yml toml ini env properties conf", DATA],
  ["json json5 jsonc jsonl", JSON_FAMILY],
  ["html xml svg vue", MARKUP],
  ["css scss less", CSS],
]) {
  for (const language of languages.split(" ")) FAMILIES.set(language, its);
}

/** Append code to `parent` as text nodes and coloured spans. Code of an unknown language is one text. */
export function highlight(parent, code, language) {
  const its = FAMILIES.get(language.toLowerCase());
  if (!its || code.length > MAX_CHARACTERS) {
    parent.append(code);
    return;
  }
  const words = new Set(its.words.split(" "));
  const pattern = new RegExp(`(${its.comment})|(${its.strings})|([A-Za-z_$][\\w$]*)|([0-9][\\w.]*)`, `g${its.flags}`);
  let plain = 0; // start of the text that is not appended yet
  for (const match of code.matchAll(pattern)) {
    const [text, comment, string, word, number] = match;
    const isKeyword = word !== undefined && words.has(its === SQL ? word.toLowerCase() : word);
    const kind = comment ? "comment" : string ? "string" : number ? "number" : isKeyword ? "keyword" : "";
    if (!kind) continue;
    if (match.index > plain) parent.append(code.slice(plain, match.index));
    parent.append(element("span", `code-${kind}`, text));
    plain = match.index + text.length;
  }
  if (plain < code.length) parent.append(code.slice(plain));
}

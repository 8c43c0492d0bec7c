// Small helpers for the document, and the format of times and values.

export const byId = (id) => document.getElementById(id);
export const now = () => Date.now() / 1000; // in seconds; unlike performance.now(), it stays comparable after a reload
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");
export const seconds = (s) => (s < 1 ? `${Math.round(Math.max(s, 0) * 1000)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`);

/** Create an element with a class and a text. External text enters the page only here and as text nodes. */
export function element(tag, className = "", text = "") {
  const created = document.createElement(tag);
  if (className) created.className = className;
  if (text) created.textContent = text;
  return created;
}

/** Return a copy of the only element of a template. */
export const fromTemplate = (id) => byId(id).content.cloneNode(true).firstElementChild;

/** Call `change`. If the end of the page was visible before, scroll so that it is visible afterwards. */
export function keepingBottom(change) {
  const page = document.documentElement;
  const atBottom = page.scrollHeight - window.innerHeight - window.scrollY < 60;
  change();
  if (atBottom) window.scrollTo(0, page.scrollHeight);
}

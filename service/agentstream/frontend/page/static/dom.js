// The few things every part of the page does with the document, and how it words times and values.

export const byId = (id) => document.getElementById(id);
export const now = () => Date.now() / 1000; // seconds; unlike performance.now() it means the same after a reload
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");
export const seconds = (s) => (s < 1 ? `${Math.round(Math.max(s, 0) * 1000)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`);

/** A new element with a class and a text; text from outside enters the page here and in text nodes alone. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** A copy of a template's one element. */
export const fromTemplate = (id) => byId(id).content.cloneNode(true).firstElementChild;

/** Change the page; if its end was in view before, it still is afterwards. */
export function keepingBottom(change) {
  const page = document.documentElement;
  const atBottom = page.scrollHeight - window.innerHeight - window.scrollY < 60;
  change();
  if (atBottom) window.scrollTo(0, page.scrollHeight);
}

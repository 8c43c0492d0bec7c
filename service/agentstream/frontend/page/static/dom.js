// Small helpers for the document, and the format of times and values.

export const byId = (id) => document.getElementById(id);
export const now = () => Date.now() / 1000; // in seconds; unlike performance.now(), it stays comparable after a reload
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");
export const seconds = (s) => (s < 1 ? `${Math.round(Math.max(s, 0) * 1000)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`);

/** Return a running time. Its width stays the same while it counts: "0.4 s", "12.0 s", "2 min 5 s". */
export function clock(s) {
  const whole = Math.max(s, 0);
  return whole < 60 ? `${whole.toFixed(1)} s` : `${Math.floor(whole / 60)} min ${Math.floor(whole % 60)} s`;
}

/** Create an element with a class and a text. External text enters the page only here and as text nodes. */
export function element(tag, className = "", text = "") {
  const created = document.createElement(tag);
  if (className) created.className = className;
  if (text) created.textContent = text;
  return created;
}

/** Create a button that does not submit a form. */
export function button(className, text, onClick) {
  const created = element("button", className, text);
  created.type = "button";
  if (onClick) created.addEventListener("click", onClick);
  return created;
}

/** Return a copy of the only element of a template. */
export const fromTemplate = (id) => byId(id).content.cloneNode(true).firstElementChild;

/** Whether the input method is composing a character. Safari reports this only by the key code 229. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Whether a key event means "send": Enter without Shift, and not to the input method. */
export const isSendKey = (event) => event.key === "Enter" && !event.shiftKey && !isComposing(event);

/**
 * Call `change` so that the reader's place stays: the end of the page if it was visible, or else the text on the screen.
 * The style sheet turns the browser's own scroll anchoring off, because Safari has none.
 */
export function keepingPlace(change) {
  const page = document.documentElement;
  const atBottom = page.scrollHeight - window.innerHeight - window.scrollY < 60;
  const mark = atBottom ? null : visibleMark();
  const top = mark?.getBoundingClientRect().top;
  change();
  if (atBottom) window.scrollTo(0, page.scrollHeight);
  else if (mark?.isConnected) window.scrollBy(0, mark.getBoundingClientRect().top - top);
}

/** Return an element of the conversation near the top of the screen, or null. */
function visibleMark() {
  for (const share of [0.15, 0.3, 0.45, 0.6]) {
    const found = document.elementFromPoint(window.innerWidth / 2, window.innerHeight * share);
    const mark = found?.closest(".question, .answer > *, .asking, .step, .thought, .actions");
    if (mark) return mark;
  }
  return null;
}

/** Make a text field as high as its text, up to the limit of the style sheet. */
export function fitHeight(field) {
  if (window.CSS?.supports?.("field-sizing", "content")) return; // the style sheet does it
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

// The message field with its buttons: sending, stopping, and the height of the field.

import { byId, fitHeight, isComposing, isSendKey } from "./dom.js";

const prompt = byId("prompt");

export const draft = () => prompt.value.trim();

export function setDraft(text) {
  prompt.value = text;
  fitHeight(prompt);
  showSend();
}

let isRunning = false;

/** Show that a run is active, and whether it is being stopped. Stop replaces Send while the field is empty. */
export function showRunning(active, stopping = false) {
  const [send, stop] = [byId("send"), byId("stop")];
  isRunning = active;
  const hadFocus = document.activeElement === stop || document.activeElement === send;
  stop.hidden = !active;
  showSend();
  stop.classList.toggle("stopping", stopping);
  stop.setAttribute("aria-disabled", String(stopping));
  // On phones the focus stays out of the field: it would open the keyboard over the answer.
  const home = window.matchMedia("(pointer: coarse)").matches ? send : prompt;
  if (hadFocus) (active ? stop : home).focus({ preventScroll: true });
}

/** Show Send if there is something to send: a question, or a message to the active run. */
function showSend() {
  const send = byId("send");
  send.hidden = isRunning && !draft();
  send.title = isRunning ? "Send to the agent while it works (Enter)" : "Send (Enter)";
}

/** Call `onSend` when the user sends the message, `onStop` when the user stops the run, `onEscape` for Escape. */
export function watchComposer(onSend, onStop, onEscape) {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    onSend();
  });
  prompt.addEventListener("keydown", (event) => {
    if (!isSendKey(event)) return;
    event.preventDefault();
    onSend();
  });
  prompt.addEventListener("input", () => {
    fitHeight(prompt);
    showSend();
  });
  document.addEventListener("keydown", (event) => {
    const inDialog = document.querySelector("dialog[open]") !== null;
    if (event.key === "Escape" && !isComposing(event) && !event.defaultPrevented && !inDialog) onEscape();
  });
  byId("stop").addEventListener("click", onStop);
  fitHeight(prompt);
}

/** Keep the field above the keyboard of a phone. Safari lays the keyboard over the page. */
export function followKeyboard() {
  const viewport = window.visualViewport;
  if (!viewport) return;
  const update = () => {
    const isZoomed = viewport.scale > 1.01;
    const covered = isZoomed ? 0 : Math.max(0, window.innerHeight - viewport.height - viewport.offsetTop);
    document.documentElement.style.setProperty("--covered", `${Math.round(covered)}px`);
  };
  viewport.addEventListener("resize", update);
  viewport.addEventListener("scroll", update);
}

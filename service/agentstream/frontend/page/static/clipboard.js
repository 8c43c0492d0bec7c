// Copies a text: by the clipboard API, by the older command (plain http has no clipboard API), or by the user's hand.

import { byId } from "./dom.js";

const TOAST_MS = 2500;
let toastTimer = 0;

/** Copy a text to the clipboard and say so. `name` begins the sentence, such as "The answer". */
export async function copy(text, name) {
  if (navigator.clipboard ? await copyByApi(text) : copyByCommand(text)) {
    byId("status").textContent = `${name} was copied.`;
    byId("toast").textContent = `${name} was copied.`;
    clearTimeout(toastTimer);
    toastTimer = setTimeout(() => (byId("toast").textContent = ""), TOAST_MS);
    return;
  }
  byId("copy-text").value = text;
  openDialog(byId("copy-by-hand"));
  byId("copy-text").select();
}

async function copyByApi(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // no permission, or the page has no focus
  }
}

function copyByCommand(text) {
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "visually-hidden";
  field.readOnly = true; // no keyboard on phones
  document.body.append(field);
  field.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    field.remove();
    focused?.focus?.({ preventScroll: true });
  }
}

/** Open a dialog, as a modal one if the browser can. */
export function openDialog(dialog) {
  if (dialog.showModal) dialog.showModal();
  else dialog.setAttribute("open", "");
}

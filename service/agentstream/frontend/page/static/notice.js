// The notice above the message field. It is an alert: screen readers read it at once.

import { byId } from "./dom.js";

let source = "";

/** Show a notice. An empty text removes the notice only if the same `from` has shown it. */
export function notice(text, from = "page") {
  if (!text && source !== from) return;
  if (byId("notice").textContent !== text) byId("notice").textContent = text; // an unchanged alert is not read again
  byId("notice").hidden = !text;
  source = text ? from : "";
}

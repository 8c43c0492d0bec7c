// The select of models: the names that have a live worker, and any other name that the user enters. A reload keeps it.

import { modelNames } from "./api.js";
import { openDialog } from "./clipboard.js";
import { byId } from "./dom.js";
import { notice } from "./notice.js";
import { read, write } from "./storage.js";
import { showAgents } from "./welcome.js";

const MODEL_ITEM = "agentstream.model";
const RELOAD_MS = 3000; // until the server lists a model

let names = [];
let timer = 0;
let before = ""; // the value before "Another model …" was chosen

export const chosenModel = () => byId("model").value;

/** Load the names and return the chosen model; "" if there is none. `onKeyNeeded` is called if the server wants a key. */
export async function loadModels(onKeyNeeded) {
  clearTimeout(timer);
  try {
    names = await modelNames();
    show();
    notice(names.length ? "" : "No agent is running on this server yet. This page looks again every few seconds.", "models");
    if (names.length === 0) retry(onKeyNeeded);
  } catch (error) {
    show();
    if (error.status === 401) onKeyNeeded();
    else notice(`The list of agents could not be loaded. ${error.message}`, "models");
    if (error.status !== 401) retry(onKeyNeeded);
  }
  return chosenModel();
}

/** Choose a model, also one that the server does not list. */
export function choose(name) {
  write(MODEL_ITEM, name);
  show();
}

function retry(onKeyNeeded) {
  timer = setTimeout(() => (document.hidden ? retry(onKeyNeeded) : loadModels(onKeyNeeded)), RELOAD_MS);
}

function show() {
  const kept = read(MODEL_ITEM);
  const listed = kept && !names.includes(kept) ? [kept, ...names] : names;
  const options = listed.map((name) => new Option(name, name, false, name === kept));
  if (listed.length === 0) options.push(new Option("No agent", ""));
  const other = new Option("Another model …", "");
  other.dataset.other = "";
  byId("model").replaceChildren(...options, other);
  if (!kept) byId("model").selectedIndex = 0;
  before = chosenModel();
  showAgents(listed, before, choose);
}

// Agents start and stop while the reader looks at other tabs.
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || names.length === 0) return;
  try {
    names = await modelNames();
    show();
  } catch {
    // the next question says what is wrong
  }
});
byId("model").addEventListener("change", () => {
  const other = byId("model").selectedOptions[0]?.dataset.other !== undefined;
  if (!other) {
    choose(chosenModel());
    return;
  }
  byId("model").value = before; // until a name is entered
  byId("other-model").returnValue = "";
  byId("other-name").value = "";
  openDialog(byId("other-model"));
});
byId("other-model").addEventListener("close", () => {
  const name = byId("other-name").value.trim();
  if (byId("other-model").returnValue === "use" && name) choose(name);
});
byId("other-cancel").addEventListener("click", () => byId("other-model").close());

// Keeps the conversation, the key and the model in the session storage of the tab, so that a reload restores them.

const CHAT = "agentstream.chat";
const MAX_CHARACTERS = 2_000_000; // browsers allow a page about 5 million
const MAX_TEXT_CHARACTERS = 20_000; // of one fact; consecutive texts are joined up to this size

const memory = new Map(); // values that the browser could not store, because storage is blocked or full

/** Return a stored text; "" if there is none. */
export function read(name) {
  if (memory.has(name)) return memory.get(name);
  try {
    return window.sessionStorage.getItem(name) ?? "";
  } catch {
    return ""; // browsers that block storage throw different errors, even for the access to the property
  }
}

/** Store a text and return whether a reload will find it. If not, it is kept until the page is left. */
export function write(name, text) {
  try {
    window.sessionStorage.setItem(name, text);
    memory.delete(name);
    return true;
  } catch {
    memory.set(name, text);
    return false;
  }
}

/** Add a fact to a list. Consecutive texts are joined, because one entry per token would be large. */
export function appendFact(facts, fact, at) {
  const last = facts[facts.length - 1]?.fact;
  const joins = last?.kind === fact.kind && (fact.kind === "text" || fact.kind === "reasoning");
  if (joins && last.text.length < MAX_TEXT_CHARACTERS) last.text += fact.text;
  else facts.push({ fact: { ...fact }, at });
}

/**
 * Store the exchanges. If they are too large, the oldest are stored without facts. Their run ids stay, and a reload
 * fetches the facts from the server, as long as the server keeps the run.
 */
export function saveChat(records) {
  const kept = records.map((record) => JSON.stringify(record));
  let size = kept.reduce((sum, text) => sum + text.length, 0);
  const short = (record) => JSON.stringify({ ...record, facts: [], cursor: "", attempt: 0 });
  records.forEach((record, index) => {
    if (size <= MAX_CHARACTERS) return;
    size -= kept[index].length;
    kept[index] = short(record);
    size += kept[index].length;
  });
  if (write(CHAT, `[${kept.join()}]`)) return;
  memory.delete(CHAT); // the page itself holds the exchanges
  if (write(CHAT, `[${records.map(short).join()}]`)) return;
  memory.delete(CHAT);
  try {
    window.sessionStorage.removeItem(CHAT); // a reload can still resume the run in the URL
  } catch {
    // there is no storage
  }
}

/** Return the stored exchanges; [] if there are none or the data is invalid. */
export function loadChat() {
  try {
    const records = JSON.parse(read(CHAT) || "[]");
    return Array.isArray(records) ? records.filter((record) => Array.isArray(record?.facts)) : [];
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
}

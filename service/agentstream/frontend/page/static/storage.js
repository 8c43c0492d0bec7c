// Keeps the conversation in the session storage of the tab, so that a reload restores it.

const ITEM = "agentstream.chat";
const MAX_CHARACTERS = 2_000_000; // browsers allow a page about 5 million
const MAX_TEXT_CHARACTERS = 20_000; // of one fact; consecutive texts are joined up to this size

/** Add a fact to a list. Consecutive texts are joined, because one entry per token would be large. */
export function appendFact(facts, fact, at) {
  const last = facts.at(-1)?.fact;
  const joins = last?.kind === fact.kind && (fact.kind === "text" || fact.kind === "reasoning");
  if (joins && last.text.length < MAX_TEXT_CHARACTERS) last.text += fact.text;
  else facts.push({ fact: { ...fact }, at });
}

/**
 * Store the exchanges. If they are too large, the oldest are stored without facts. Their run ids stay, and a reload
 * fetches the facts from the server, as long as the server keeps the run.
 */
export function save(records) {
  const kept = records.map((record) => JSON.stringify(record));
  let size = kept.reduce((sum, text) => sum + text.length, 0);
  records.forEach((record, index) => {
    if (size <= MAX_CHARACTERS) return;
    size -= kept[index].length;
    kept[index] = JSON.stringify({ ...record, facts: [], cursor: "" });
    size += kept[index].length;
  });
  try {
    sessionStorage.setItem(ITEM, `[${kept.join()}]`);
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    sessionStorage.removeItem(ITEM); // a reload can still resume the run in the URL
  }
}

/** Return the stored exchanges; [] if there are none or the data is invalid. */
export function load() {
  try {
    const records = JSON.parse(sessionStorage.getItem(ITEM) ?? "[]");
    return Array.isArray(records) ? records.filter((record) => Array.isArray(record?.facts)) : [];
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
}

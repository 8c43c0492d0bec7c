// The conversation in this tab's session storage, so that a reload finds it again.

const ITEM = "agentstream.chat";
const MOST_CHARACTERS = 2_000_000; // browsers give a page about 5 million
const LONGEST_TEXT = 20_000; // of one fact: texts that follow each other are joined up to here

/** Add a fact to a list, joining texts: tokens are many, and each costs an entry otherwise. */
export function appendFact(facts, fact, at) {
  const last = facts.at(-1)?.fact;
  const joins = last?.kind === fact.kind && (fact.kind === "text" || fact.kind === "reasoning");
  if (joins && last.text.length < LONGEST_TEXT) last.text += fact.text;
  else facts.push({ fact: { ...fact }, at });
}

/**
 * Keep what exchanges there are. What is too much to keep is left out, the oldest first: its run's id stays, and the
 * server tells the rest again, while it has it.
 */
export function save(records) {
  const kept = records.map((record) => JSON.stringify(record));
  let size = kept.reduce((sum, text) => sum + text.length, 0);
  records.forEach((record, index) => {
    if (size <= MOST_CHARACTERS) return;
    size -= kept[index].length;
    kept[index] = JSON.stringify({ ...record, facts: [], cursor: "" });
    size += kept[index].length;
  });
  try {
    sessionStorage.setItem(ITEM, `[${kept.join()}]`);
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    sessionStorage.removeItem(ITEM); // the run in the address can still be taken up
  }
}

/** What was saved, [] if nothing was or it is not ours. */
export function load() {
  try {
    const records = JSON.parse(sessionStorage.getItem(ITEM) ?? "[]");
    return Array.isArray(records) ? records.filter((record) => Array.isArray(record?.facts)) : [];
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
}

// The empty state of the page: the agents of the server, and questions to begin with.

import { button, byId, element } from "./dom.js";

const MAX_AGENTS = 12; // more are in the select
// Example questions for any agent. The built-in demo answers them without a model.
const EXAMPLES = [
  "What can you do?",
  "What is 17*23, and the time in Tokyo?",
  'Count the words in "to be or not to be"',
  "Count to 200",
];

/** Show the names of the agents. A click on a name calls `choose` with it. */
export function showAgents(names, chosen, choose) {
  byId("agents").hidden = names.length === 0;
  const items = names.slice(0, MAX_AGENTS).map((name) => {
    const item = element("li");
    const agent = button("agent", name, () => {
      choose(name);
      byId("prompt").focus();
    });
    agent.setAttribute("aria-pressed", String(name === chosen));
    item.append(agent);
    return item;
  });
  if (names.length > MAX_AGENTS) items.push(element("li", "rest", `and ${names.length - MAX_AGENTS} more at the top`));
  byId("agents").querySelector("ul").replaceChildren(...items);
}

/** Show the examples. A click on one calls `ask` with it. */
export function showExamples(ask) {
  const items = EXAMPLES.map((example) => {
    const item = element("li");
    item.append(button("example", example, () => ask(example)));
    return item;
  });
  byId("examples").querySelector("ul").replaceChildren(...items);
}

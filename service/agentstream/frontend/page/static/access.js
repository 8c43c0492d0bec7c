// The field for the API key.

import { apiKey, storeApiKey } from "./api.js";
import { byId, isComposing } from "./dom.js";
import { notice } from "./notice.js";

/** Ask the user for a key. */
export function askForKey() {
  byId("access").open = true;
  const wrong = apiKey() !== "";
  notice(wrong ? "The server does not accept this API key." : "This server needs an API key.", "access");
  byId("key").focus();
}

/**
 * Close the key field and focus the message field. Do not call this while the user may be typing a key: the rest of the
 * key would go into the message.
 */
export function closeAccess() {
  if (byId("access").open) byId("prompt").focus();
  byId("access").open = false;
  notice("", "access");
}

document.addEventListener("pointerdown", (event) => {
  if (!byId("access").contains(event.target)) byId("access").open = false;
});

/** Show the stored key, and call `onChange` after the user has entered another one. */
export function watchKey(onChange) {
  const field = byId("key");
  field.value = apiKey();
  field.addEventListener("change", () => {
    storeApiKey(field.value.trim());
    onChange();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !isComposing(event)) field.blur(); // without a form, some browsers report no change
  });
}

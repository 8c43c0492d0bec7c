// Editing a question in its place.

import { fitHeight, fromTemplate, isComposing, isSendKey } from "./dom.js";

/** Replace a question by a field. `isLast` is false if sending removes later exchanges; `onSend` gets the new text. */
export function editQuestion(exchange, isLast, onSend) {
  const asked = exchange.part("asked");
  if (asked.hidden) return;
  const form = fromTemplate("edit-template");
  const field = form.querySelector("textarea");
  field.value = exchange.question;
  form.querySelector(".warning").hidden = isLast;
  const close = () => {
    form.remove();
    asked.hidden = false;
    exchange.part("edit").focus();
  };
  const send = () => {
    const question = field.value.trim();
    if (question) onSend(question);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !isComposing(event)) {
      event.preventDefault(); // Escape outside of a field stops a run
      close();
    } else if (event.target === field && isSendKey(event)) {
      event.preventDefault();
      send();
    }
  });
  field.addEventListener("input", () => fitHeight(field));
  form.querySelector(".cancel").addEventListener("click", close);
  asked.hidden = true;
  asked.after(form);
  fitHeight(field);
  field.focus();
}

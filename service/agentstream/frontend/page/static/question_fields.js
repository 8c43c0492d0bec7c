// The fields of a question with a schema: a flat object of strings, numbers, integers and booleans.

import { element } from "./dom.js";

const LONG_TEXT = 200; // characters; a longer text gets a field with several rows
const INPUT_TYPES = { email: "email", uri: "url", date: "date" }; // of the formats of strings
const UNCHOSEN = ""; // the value of the first, empty entry of a list
let lastNumber = 0;

/** Create one labelled field for each property of the schema. Returns { box, read }; `read` returns the answer. */
export function fieldsOf(schema) {
  const box = element("div", "fields");
  const required = new Set(schema.required ?? []);
  const readers = Object.entries(schema.properties).map(([name, property]) => [
    name,
    addField(box, property.title ?? name, property, required.has(name)),
  ]);
  const read = () => {
    const values = readers.map(([name, reader]) => [name, reader()]).filter(([, value]) => value !== undefined);
    return Object.fromEntries(values);
  };
  return { box, read };
}

/** Add one field to `box`. Returns a function that returns its value; undefined if an optional field is empty. */
export function addField(box, label, property, required) {
  const field = controlOf(property, required);
  field.control.id = `field-${(lastNumber += 1)}`;
  const title = element("label", "", label);
  title.htmlFor = field.control.id;
  if (!required) title.append(" ", element("span", "optional", "optional"));
  const row = element("div", field.control.type === "checkbox" ? "control tick" : "control");
  if (field.control.type === "checkbox") row.append(field.control, title);
  else row.append(title, field.control);
  if (property.description) {
    const help = element("p", "help", property.description);
    help.id = `${field.control.id}-help`;
    help.dir = "auto";
    field.control.setAttribute("aria-describedby", help.id);
    row.append(help);
  }
  box.append(row);
  return field.read;
}

function controlOf(property, required) {
  if (Array.isArray(property.enum)) return choiceOf(property.enum, property.enumNames ?? property.enum, property, required);
  if (property.type === "boolean") {
    const isOpen = !required && typeof property.default !== "boolean"; // the person may leave it out
    return isOpen ? choiceOf([true, false], ["Yes", "No"], property, required) : tickOf(property);
  }
  return property.type === "string" ? textOf(property, required) : numberOf(property, required);
}

function choiceOf(values, names, property, required) {
  const control = element("select");
  const empty = element("option", "", "Choose …");
  empty.value = UNCHOSEN;
  control.append(empty);
  values.forEach((value, index) => {
    const option = element("option", "", String(names[index] ?? value));
    option.value = String(index);
    option.selected = value === property.default;
    control.append(option);
  });
  control.required = required;
  return { control, read: () => (control.value === UNCHOSEN ? undefined : values[Number(control.value)]) };
}

function tickOf(property) {
  const control = element("input");
  control.type = "checkbox";
  control.checked = property.default === true;
  return { control, read: () => control.checked };
}

function textOf(property, required) {
  const isLong = !property.format && property.maxLength > LONG_TEXT;
  const control = element(isLong ? "textarea" : "input");
  if (isLong) control.rows = 3;
  else control.type = INPUT_TYPES[property.format] ?? "text";
  if (property.minLength !== undefined) control.minLength = property.minLength;
  if (property.maxLength !== undefined) control.maxLength = property.maxLength;
  control.required = required && property.minLength !== 0;
  control.value = String(property.default ?? "");
  return { control, read: () => (control.value === "" && !required ? undefined : control.value) };
}

function numberOf(property, required) {
  const control = element("input");
  control.type = "number";
  control.step = property.type === "integer" ? "1" : "any";
  control.inputMode = property.type === "integer" && property.minimum >= 0 ? "numeric" : "decimal";
  if (property.minimum !== undefined) control.min = String(property.minimum);
  if (property.maximum !== undefined) control.max = String(property.maximum);
  control.required = required;
  control.value = String(property.default ?? "");
  return { control, read: () => (control.value === "" ? undefined : Number(control.value)) };
}

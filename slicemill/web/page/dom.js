// @ts-check
/** Small helpers for elements. Text from files goes through `textContent` only. */

const CONTROL = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const LONGEST = 120;

/** Return the element of the page with an id. @template {HTMLElement} T
 * @param {string} id @param {new () => T} kind @returns {T} */
export function byId(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new Error(`no ${kind.name} #${id}`);
  return element;
}

/** Return text from a file, cut, with control characters shown: they could turn the order of letters.
 * @param {string} text */
export const clean = (text) => cut(text, LONGEST);

/** The same, cut elsewhere. @param {string} text @param {number} most */
export function cut(text, most) {
  const shown = text.replace(CONTROL, (one) => `\\x${one.charCodeAt(0).toString(16).padStart(2, "0")}`);
  return shown.length > most ? `${shown.slice(0, most - 1)}…` : shown;
}

/** Make an element with text. @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name @param {string} [text] @param {string} [className] */
export function make(name, text = "", className = "") {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** Make a button. @param {string} text @param {string} title @param {() => void} action */
export function makeButton(text, title, action) {
  const button = make("button", text);
  button.type = "button";
  button.title = title;
  button.addEventListener("click", action);
  return button;
}

/** Make an option of a choice. @param {string} value @param {string} text */
export function makeOption(value, text) {
  const option = make("option", text);
  option.value = value;
  return option;
}

/** Fill a list. @param {HTMLElement} list @param {string[]} texts */
export function fillList(list, texts) {
  list.replaceChildren(...texts.map((text) => make("li", text)));
}

/** @param {number} count @param {string} word */
export function counted(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

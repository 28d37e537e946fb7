// @ts-check
/** Windows, switches, keys, theme and help. */

import { byId, make, makeButton, makeOption } from "./dom.js";

/** @typedef {{low: number, high: number}} Window */

/** The window in which scans open if a model looks for nodules. @type {Window} */
export const LUNG = { low: -1350, high: 150 };

/** @type {[string, Window][]} */
export const PRESETS = [
  ["Abdomen", { low: -100, high: 240 }],
  ["Liver", { low: -20, high: 180 }],
  ["Lung", LUNG],
  ["Bone", { low: -450, high: 1050 }],
  ["Brain", { low: 0, high: 80 }],
];
const [LOWEST, HIGHEST] = [-32768, 32767];

/** Return a window that has a width and fits int16. @param {Window} window @returns {Window} */
export function fitWindow({ low, high }) {
  const first = Math.min(Math.max(Math.round(low), LOWEST), HIGHEST - 1);
  return { low: first, high: Math.min(Math.max(Math.round(high), first + 1), HIGHEST) };
}

/** Connect the window's controls; return a function that shows a window. @param {(window: Window) => void} onChange */
export function connectWindow(onChange) {
  const preset = byId("preset", HTMLSelectElement);
  const [low, high] = [byId("low", HTMLInputElement), byId("high", HTMLInputElement)];
  preset.append(
    ...PRESETS.map(([name], index) => makeOption(String(index), `${index + 1}  ${name}`)),
    makeOption("own", "Own"),
  );
  preset.addEventListener("change", () => {
    const chosen = PRESETS[Number(preset.value)];
    if (chosen) onChange(chosen[1]);
  });
  for (const input of [low, high]) {
    input.addEventListener("change", () => {
      if (Number.isFinite(low.valueAsNumber) && Number.isFinite(high.valueAsNumber)) {
        onChange(fitWindow({ low: low.valueAsNumber, high: high.valueAsNumber }));
      }
    });
  }
  return (/** @type {Window} */ window) => {
    low.value = String(window.low);
    high.value = String(window.high);
    const index = PRESETS.findIndex(([, one]) => one.low === window.low && one.high === window.high);
    preset.value = index < 0 ? "own" : String(index);
  };
}

/** Make a switch; return a function that shows its state. @param {string} text @param {string} key @param {string} name
 * @param {() => void} action */
export function addSwitch(text, key, name, action) {
  const button = makeButton(text, `${text} (${key})`, action);
  button.dataset.switch = name;
  byId("toggles", HTMLElement).append(button);
  return (/** @type {boolean} */ isOn) => button.setAttribute("aria-pressed", String(isOn));
}

/** Connect the switch of the theme; without a choice the theme is the system's. */
export function connectTheme() {
  const button = byId("theme", HTMLButtonElement);
  const { dataset } = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: light)");
  let chosen = "";
  const show = () => {
    dataset.theme = chosen || (system.matches ? "light" : "dark");
    button.textContent = dataset.theme === "light" ? "Dark theme" : "Light theme";
  };
  button.addEventListener("click", () => {
    chosen = dataset.theme === "light" ? "dark" : "light";
    show();
  });
  system.addEventListener("change", show);
  show();
}

/** @typedef {{keys: string[], shown: string, text: string, action: (event: KeyboardEvent) => void}} Key */

/** Connect keys, and list them in the help. A key that a control needs itself stays with the control.
 * @param {Key[]} keys */
export function connectKeys(keys) {
  const dialog = byId("help-dialog", HTMLDialogElement);
  const table = byId("help-keys", HTMLTableElement);
  for (const { shown, text } of keys) {
    const row = table.insertRow();
    row.insertCell().append(make("kbd", shown));
    row.insertCell().textContent = text;
  }
  byId("help", HTMLButtonElement).addEventListener("click", () => dialog.showModal());
  byId("help-close", HTMLButtonElement).addEventListener("click", () => dialog.close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || dialog.open || isTaken(event)) return;
    const found = keys.find((one) => one.keys.includes(event.key));
    if (found) {
      event.preventDefault();
      found.action(event);
    }
  });
}

/** Return whether the control that has the focus uses a key itself. @param {KeyboardEvent} event */
function isTaken({ target, key }) {
  if (target instanceof HTMLSelectElement) return true;
  const isMove = /^(Arrow|Page|Home|End)/.test(key);
  if (target instanceof HTMLInputElement && target.id === "threshold" && isMove) return true;
  if (target instanceof HTMLInputElement) return target.type === "number" || (target.type !== "range" && key === " ");
  if (target instanceof HTMLButtonElement) return key === "Enter" || key === " ";
  return target instanceof HTMLElement && target.id === "parts-scroll" && isMove;
}

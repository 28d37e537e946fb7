// @ts-check
/** The table of the parts of a label, such as the lesions of tumor: a row jumps to its part. */

import { byId, clean, counted, fillTable, makeOption, makeRowButton } from "./dom.js";
import { formatMl } from "./labels.js";

/** @typedef {import("./api.js").Parts} Parts */
/** @typedef {import("./api.js").Part} Part */
/** @typedef {import("./labels.js").ShownLabel} ShownLabel */

/** Fill the choice of labels; the tumor is chosen first. Return the chosen label.
 * @param {ShownLabel[]} labels @param {import("./api.js").Mask[]} masks @param {ShownLabel | null} chosen
 * @returns {ShownLabel | null} */
export function chooseLabel(labels, masks, chosen) {
  const choice = byId("parts-of", HTMLSelectElement);
  const key = (/** @type {ShownLabel} */ label) => `${label.mask}/${label.value}`;
  choice.replaceChildren(
    ...labels.map((label) =>
      makeOption(
        key(label),
        masks.length > 1 ? `${label.shownName}, ${clean(masks[label.mask].name)}` : label.shownName,
      ),
    ),
  );
  const found =
    labels.find((label) => chosen && key(label) === key(chosen)) ??
    labels.find((label) => masks[label.mask].tumor === label.value) ??
    labels[0] ??
    null;
  if (found) choice.value = key(found);
  byId("parts-box", HTMLElement).hidden = !found;
  return found;
}

/** Return the label that is chosen. @param {ShownLabel[]} labels */
export function chosenLabel(labels) {
  const { value } = byId("parts-of", HTMLSelectElement);
  return labels.find((label) => `${label.mask}/${label.value}` === value) ?? null;
}

/** Show the table. @param {Parts | null} parts @param {string} name @param {string} word what a part is called
 * @param {string} waiting text without parts
 * @param {(part: Part) => void} onJump */
export function showParts(parts, name, word, waiting, onJump) {
  const text = byId("parts-text", HTMLElement);
  const table = byId("parts", HTMLTableElement);
  table.replaceChildren();
  byId("parts-scroll", HTMLElement).hidden = !parts?.count;
  if (!parts) {
    text.textContent = waiting;
    return;
  }
  text.textContent = describeParts(parts, name, word);
  if (!parts.count) return;
  const titles = [word[0].toUpperCase() + word.slice(1), "Slice", "mm", "ml", "Mean HU"];
  const cells = parts.parts.map(({ id, key_z, max_axial_diameter_mm, volume_ml }, index) => [
    makeRowButton(id, `Show ${word} ${id} in slice ${key_z + 1}`),
    key_z + 1,
    max_axial_diameter_mm.toFixed(1),
    formatMl(volume_ml),
    parts.mean_hu?.[index].toFixed(0) ?? "",
  ]);
  fillTable(table, titles, cells).forEach((row, index) => {
    const part = parts.parts[index];
    row.dataset.part = String(part.id);
    row.addEventListener("click", () => onJump(part));
  });
}

/** @param {Parts} parts @param {string} name @param {string} word */
function describeParts(parts, name, word) {
  if (!parts.count) return `The mask has no ${name}.`;
  const longest = parts.parts.reduce((a, b) => (b.max_axial_diameter_mm > a.max_axial_diameter_mm ? b : a));
  const isCut = parts.count > parts.parts.length;
  const which = isCut ? `The ${parts.parts.length} largest are listed; the longest of these` : "The longest";
  return (
    `${counted(parts.count, word)} of ${name}, ${formatMl(parts.volume_ml)} ml together. ${which} has ` +
    `${longest.max_axial_diameter_mm.toFixed(1)} mm, in slice ${longest.key_z + 1}.`
  );
}

/** Mark the row of a part. @param {number | null} id */
export function markRow(id) {
  for (const row of byId("parts", HTMLTableElement).tBodies[0]?.rows ?? []) {
    const isChosen = row.dataset.part === String(id);
    row.classList.toggle("chosen", isChosen);
    if (isChosen) row.scrollIntoView({ block: "nearest" });
  }
}

/** Return the middle of a part: its key slice, and the middle of its box there. @param {Part} part */
export function middleOf(part) {
  const [, y0, x0, , y1, x1] = part.bbox_zyx;
  return { x: Math.floor((x0 + x1 - 1) / 2), y: Math.floor((y0 + y1 - 1) / 2), z: part.key_z };
}

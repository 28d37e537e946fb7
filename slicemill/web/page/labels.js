// @ts-check
/** Labels of masks: names, colors, dashes, and which of them are shown. */

import { byId, clean, make } from "./dom.js";

/** @typedef {import("./api.js").Label} Label */
/** @typedef {import("./render.js").Overlay} Overlay */
/** @typedef {Label & {mask: number, isShown: boolean, pattern: number[], shownName: string}} ShownLabel */

const OTHERS = [
  [255, 210, 60],
  [190, 130, 255],
  [110, 230, 150],
  [255, 150, 200],
];
/** Colors of values without a name, as in slicemill's other pictures. */
const SOLID = /** @type {number[]} */ ([]);
const DASHED = [7, 4];
const DOTTED = [2, 2];

/** Return the labels of all masks: those that have a name, and the values that were found.
 * @param {import("./api.js").Mask[]} masks @param {(import("./api.js").VolumeProgress | null)[]} progress
 * @param {ShownLabel[]} before whose labels stay hidden @returns {ShownLabel[]} */
export function listLabels(masks, progress, before) {
  return masks.flatMap((mask, number) => {
    if (mask.threshold) return [thresholdLabel(mask.threshold, number, before)];
    const found = (progress[number]?.values ?? []).map(([value]) => value);
    const named = new Set(mask.labels.map((label) => label.value));
    const unnamed = found.filter((value) => !named.has(value));
    const labels = [
      ...mask.labels,
      ...unnamed.map((value, index) => ({ value, name: "", color: OTHERS[index % OTHERS.length], region: [value] })),
    ];
    const main = mask.tumor ?? labels[0]?.value;
    return labels.map((label) => ({
      ...label,
      mask: number,
      color: number ? turnColor(label.color) : label.color,
      pattern: number ? DOTTED : label.value === main ? SOLID : DASHED,
      shownName: label.name ? clean(label.name) : `value ${label.value}`,
      isShown: before.find((one) => one.mask === number && one.value === label.value)?.isShown ?? true,
    }));
  });
}

/** Return the label of what reaches a threshold; it is hidden until it is wanted.
 * @param {number} value of 255 @param {number} mask @param {ShownLabel[]} before @returns {ShownLabel} */
function thresholdLabel(value, mask, before) {
  const name = `probability of ${Math.floor((value * 100) / 255)} % and more`;
  const region = Array.from({ length: 256 - value }, (_, step) => value + step);
  const isShown = before.find((one) => one.mask === mask)?.isShown ?? false;
  return { value, name, region, mask, color: OTHERS[0], pattern: DOTTED, shownName: name, isShown };
}

/** Return the color of a label in a second mask: green for the red of tumor. @param {number[]} color */
function turnColor([red, green, blue]) {
  return [blue, red, green];
}

/** Return for each mask how its values are drawn; a value that is hidden counts to the label whose region has it.
 * @param {ShownLabel[]} labels @param {number} masks @returns {Omit<Overlay, "values">[]} */
export function makeOverlays(labels, masks) {
  return Array.from({ length: masks }, (_, mask) => {
    const shown = labels.filter((label) => label.mask === mask && label.isShown);
    const owner = new Uint8Array(256);
    shown.forEach((label, index) => {
      for (const value of label.region) owner[value] ||= index + 1;
    });
    shown.forEach((label, index) => {
      owner[label.value] = index + 1;
    });
    const styles = shown.map(({ region, color, pattern }) => {
      const inside = new Uint8Array(256);
      for (const value of region) inside[value] = 1;
      return { inside, color, pattern };
    });
    return { owner, styles };
  });
}

/** Show the list of labels with their volumes.
 * @param {ShownLabel[]} labels @param {import("./api.js").CaseInfo} info
 * @param {(import("./api.js").VolumeProgress | null)[]} progress @param {(label: ShownLabel) => void} onChange */
export function showLabels(labels, info, progress, onChange) {
  const box = byId("labels", HTMLElement);
  const [[a, b, c], [d, e, f], [g, h, i]] = info.affine_lps;
  const voxelMl = Math.abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)) / 1000;
  box.replaceChildren(
    ...info.masks.flatMap((mask, number) => {
      const title = make("h3", clean(mask.name));
      const failure = mask.failure ?? progress[number]?.failure;
      if (failure) return [title, make("p", failure, "problem")];
      const rows = labels.filter((label) => label.mask === number);
      if (!rows.length) return [title, make("p", progress[number]?.is_complete ? "The mask is empty." : "Reading …")];
      const counts = new Map(progress[number]?.values ?? []);
      return [title, ...rows.map((label) => labelRow(label, countRegion(label, counts), voxelMl, number, onChange))];
    }),
  );
  byId("labels-box", HTMLElement).hidden = !info.masks.length;
}

/** Return the voxels of a label's region; undefined before the mask was read.
 * @param {ShownLabel} label @param {Map<number, number>} counts */
function countRegion({ region }, counts) {
  return counts.size ? region.reduce((sum, value) => sum + (counts.get(value) ?? 0), 0) : undefined;
}

/** @param {ShownLabel} label @param {number | undefined} voxels @param {number} voxelMl @param {number} mask
 * @param {(label: ShownLabel) => void} onChange */
function labelRow(label, voxels, voxelMl, mask, onChange) {
  const row = make("label", "", "label-row");
  const box = make("input");
  box.type = "checkbox";
  box.checked = label.isShown;
  box.id = `label-${mask}-${label.value}`;
  box.addEventListener("change", () => {
    label.isShown = box.checked;
    onChange(label);
  });
  const sample = labelSample(label);
  const volume = voxels === undefined ? "" : `${formatMl(voxels * voxelMl)} ml`;
  row.append(box, sample, make("span", label.shownName, "name"), make("span", volume, "number"));
  return row;
}

/** Return a sample of a label's outline. @param {ShownLabel} label */
export function labelSample({ color, pattern }) {
  const sample = make("span", "", `sample ${pattern === SOLID ? "solid" : pattern === DASHED ? "dashed" : "dotted"}`);
  sample.style.color = `rgb(${color.join(" ")})`;
  return sample;
}

/** @param {number} ml */
export function formatMl(ml) {
  return ml >= 100 ? ml.toFixed(0) : ml >= 1 ? ml.toFixed(1) : ml.toFixed(3);
}

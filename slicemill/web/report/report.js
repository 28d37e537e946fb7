// @ts-check
/** The viewer in a report: axial slices that the page itself holds. It asks nobody, and works from a file. */

import { PRESETS } from "../page/controls.js";
import { clean, make, makeButton, makeOption } from "../page/dom.js";
import { moved, sectionSize, wholeView, zoomed } from "../page/geometry.js";
import { labelSample, listLabels, makeOverlays } from "../page/labels.js";
import { Pane } from "../page/pane.js";
import { windowTable } from "../page/render.js";
import { highestHu, toHu, unpackBytes } from "./packed.js";

/** @typedef {{id: number, first_z: number, key_z: number, last_z: number, text: string}} Lesion */
/**
 * @typedef {object} PageSlices What slicemill/ct/page_slices.py writes.
 * @property {[number, number, number]} shape
 * @property {[number, number, number]} spacing_mm
 * @property {number[]} slices
 * @property {number} slice_count
 * @property {number} reduced
 * @property {number} low_hu
 * @property {number} step_hu
 * @property {number | null} tumor
 * @property {import("../page/api.js").Label[]} labels
 * @property {string[]} masks
 * @property {Lesion[]} lesions
 * @property {string} data
 */

/** Return the voxels of base64 data: int16 HU, and uint8 of each mask. @param {PageSlices} record */
async function unpack({ shape, data, masks, low_hu, step_hu }) {
  const buffer = await unpackBytes(data);
  const counts = [...new Uint32Array(buffer, 0, masks.length)];
  let lengthsAt = 4 * masks.length;
  let valuesAt = counts.reduce((sum, count) => sum + 4 * count, lengthsAt);
  const size = shape[0] * shape[1] * shape[2];
  const volumes = counts.map((count) => {
    const lengths = new Uint32Array(buffer, lengthsAt, count);
    const values = new Uint8Array(buffer, valuesAt, count);
    lengthsAt += 4 * count;
    valuesAt += count;
    const volume = new Uint8Array(size);
    let start = 0;
    lengths.forEach((length, run) => volume.fill(values[run], start, (start += length)));
    return volume;
  });
  const image = toHu(new Uint8Array(buffer, valuesAt, size), { low_hu, step_hu });
  return { image, volumes };
}

/** Return a voxel's HU in words: no more than its gray value says. @param {number} hu @param {PageSlices} record */
function describeHu(hu, record) {
  const half = record.step_hu / 2;
  if (hu <= record.low_hu) return `at most ${record.low_hu + half} HU`;
  if (hu >= highestHu(record)) return `at least ${highestHu(record) - half} HU`;
  return `about ${hu} HU`;
}

class Report {
  /** @param {HTMLElement} box @param {PageSlices} record @param {Awaited<ReturnType<typeof unpack>>} voxels */
  constructor(box, record, voxels) {
    this.record = record;
    this.voxels = voxels;
    const { labels: named, tumor } = record;
    const masks = record.masks.map((name) => ({ name, labels: named, tumor, threshold: null, failure: null }));
    this.info = {
      name: "",
      shape: record.shape,
      spacing_mm: record.spacing_mm,
      affine_lps: [],
      masks,
    };
    const labels = listLabels(
      masks,
      masks.map(() => null),
      [],
    );
    this.labels = labels;
    this.overlays = makeOverlays(labels, masks.length);
    this.size = sectionSize("axial", record.shape, record.spacing_mm);
    this.view = wholeView(this.size);
    this.presets = PRESETS.map(([name, window], index) => ({ name, window, index })).filter(
      ({ window }) => window.high <= highestHu(record), // above it, all voxels would have one gray
    );
    this.window = this.presets[0].window;
    this.table = windowTable(this.window.low, this.window.high);
    this.style = { outline: true, fill: false };
    this.lesion = record.lesions.length ? 0 : -1;
    this.index = this.lesion < 0 ? record.slices.length >> 1 : record.slices.indexOf(record.lesions[0].key_z);
    /** @type {import("../page/api.js").Section[]} */
    this.sections = [];
    this.pane = new Pane("axial", this.host(), () => this.draw());
    this.pane.element.addEventListener("keydown", (event) => this.onKey(event));
    this.text = make("p", "", "pointer");
    this.slider = make("input");
    this.controls(box);
  }

  /** @returns {import("../page/pane.js").Host} */
  host() {
    return {
      activate: () => {},
      scroll: (_, steps) => this.goTo(this.index + steps),
      zoom: (_, factor, column, row) => this.change(() => (this.view = zoomed(this.view, factor, column, row))),
      move: (_, columns, rows) => this.change(() => (this.view = moved(this.view, this.size, columns, rows))),
      point: () => {},
      hover: (_, voxel) => this.showPointer(voxel),
      changeWindow: (level, width) => {
        const { low, high } = this.window;
        this.setWindow({ low: low + level - width / 2, high: high + level + width / 2 });
      },
      measure: () => {},
      isMeasuring: () => false,
    };
  }

  /** Build the controls. @param {HTMLElement} box */
  controls(box) {
    const { record, slider } = this;
    const bar = make("div", "", "slices-bar");
    this.preset = make("select");
    this.preset.setAttribute("aria-label", "Window");
    this.preset.append(...this.presets.map(({ name, index }) => makeOption(String(index), name)));
    this.preset.append(makeOption("own", "Own"));
    this.preset.addEventListener("change", () => this.choosePreset(this.preset?.value ?? ""));
    this.outline = makeButton("Outlines", "Outlines (o)", () => this.flip());
    bar.append(this.preset, this.outline);
    bar.append(makeButton("Whole picture", "Whole picture (0)", () => this.resetView()));
    if (record.lesions.length) {
      this.lesions = make("select");
      this.lesions.setAttribute("aria-label", "Lesion");
      this.lesions.append(...record.lesions.map((one, index) => makeOption(String(index), clean(one.text))));
      this.lesions.addEventListener("change", () => this.jump(Number(this.lesions?.value)));
      bar.append(this.lesions);
    }
    slider.type = "range";
    slider.min = "1";
    slider.max = String(record.slices.length);
    slider.setAttribute("aria-label", "Slice");
    slider.addEventListener("input", () => this.goTo(slider.valueAsNumber - 1));
    box.append(bar, this.pane.element, slider, this.text, this.legend());
    this.showPointer(null);
    this.draw();
  }

  /** Return the list of labels with their outlines. */
  legend() {
    const { masks } = this.record;
    const list = make("p", "", "slices-legend");
    for (const label of this.labels) {
      const sample = labelSample(label);
      const mask = masks.length > 1 ? `${clean(masks[label.mask])}: ` : "";
      const item = make("span", "", "slices-label");
      item.append(sample, make("span", `${mask}${label.shownName}`));
      list.append(item);
    }
    return list;
  }

  /** @param {() => void} action */
  change(action) {
    action();
    this.draw();
  }

  /** Return whether there is such a window, and show it. @param {string} value number of the preset */
  choosePreset(value) {
    const chosen = this.presets.find(({ index }) => String(index) === value);
    if (chosen) this.setWindow(chosen.window);
    return Boolean(chosen);
  }

  /** Show a window; it ends where the gray values do. @param {import("../page/controls.js").Window} window */
  setWindow(window) {
    const highest = highestHu(this.record);
    const low = Math.min(Math.round(window.low), highest - 1);
    this.window = { low, high: Math.min(Math.max(Math.round(window.high), low + 1), highest) };
    this.table = windowTable(this.window.low, this.window.high);
    this.draw();
  }

  flip() {
    this.style = { ...this.style, outline: !this.style.outline };
    this.draw();
  }

  resetView() {
    this.view = wholeView(this.size);
    this.draw();
  }

  /** @param {number} index */
  goTo(index) {
    this.index = Math.min(this.record.slices.length - 1, Math.max(0, index));
    this.showPointer(null);
    this.draw();
  }

  /** @param {number} number of a lesion */
  jump(number) {
    const { lesions, slices } = this.record;
    if (!lesions.length) return;
    this.lesion = (number + lesions.length) % lesions.length;
    this.goTo(slices.indexOf(lesions[this.lesion].key_z));
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const actions = /** @type {Record<string, () => void>} */ ({
      ArrowUp: () => this.goTo(this.index + 1),
      ArrowRight: () => this.goTo(this.index + 1),
      ArrowDown: () => this.goTo(this.index - 1),
      ArrowLeft: () => this.goTo(this.index - 1),
      PageUp: () => this.goTo(this.index + 10),
      PageDown: () => this.goTo(this.index - 10),
      Home: () => this.goTo(0),
      End: () => this.goTo(Infinity),
      n: () => this.jump(this.lesion + 1),
      p: () => this.jump(this.lesion - 1),
      o: () => this.flip(),
      "+": () => this.change(() => (this.view = zoomed(this.view, 1.25))),
      "=": () => this.change(() => (this.view = zoomed(this.view, 1.25))),
      "-": () => this.change(() => (this.view = zoomed(this.view, 0.8))),
      0: () => this.resetView(),
    });
    const action = actions[event.key];
    if (!action && !this.choosePreset(String(Number(event.key) - 1))) return;
    event.preventDefault();
    action?.();
  }

  /** @param {import("../page/geometry.js").Voxel | null} voxel */
  showPointer(voxel) {
    const section = this.sections[this.index];
    const { columns } = this.size;
    const hu = voxel && section ? `, ${describeHu(section.image[voxel.y * columns + voxel.x], this.record)}` : "";
    this.text.textContent = `${this.describe()}${hu}`;
  }

  describe() {
    const { slices, slice_count: count } = this.record;
    return `Slice ${slices[this.index] + 1} of ${count}`;
  }

  draw() {
    const { record, voxels, index } = this;
    const pixels = record.shape[1] * record.shape[2];
    const range = /** @type {const} */ ([index * pixels, (index + 1) * pixels]);
    const section = (this.sections[index] ??= {
      image: voxels.image.subarray(...range),
      masks: voxels.volumes.map((volume) => volume.subarray(...range)),
    });
    this.pane.draw({
      info: this.info,
      section,
      view: this.view,
      cursor: { x: 0, y: 0, z: index },
      table: this.table,
      overlays: this.overlays.map((overlay, mask) => ({ ...overlay, values: section.masks[mask] ?? NO_VALUES })),
      overlayKey: this.overlays,
      style: this.style,
      crosshair: false,
      lengths: [],
      waiting: "",
      description: this.describe(),
    });
    this.slider.value = String(index + 1);
    this.slider.setAttribute("aria-valuetext", this.describe());
    this.outline?.setAttribute("aria-pressed", String(this.style.outline));
    const { low, high } = this.window;
    const preset = this.presets.find(({ window }) => window.low === low && window.high === high);
    if (this.preset) this.preset.value = preset ? String(preset.index) : "own";
    if (this.lesions) this.lesions.value = String(this.lesion);
  }
}

const NO_VALUES = new Uint8Array();

for (const box of document.querySelectorAll(".slices")) {
  const data = box.querySelector("script");
  if (!(box instanceof HTMLElement) || !data || typeof DecompressionStream === "undefined") continue;
  const record = /** @type {PageSlices} */ (JSON.parse(data.textContent ?? ""));
  data.remove(); // the page needs the text no longer
  void unpack(record).then((voxels) => {
    box.hidden = false;
    new Report(box, record, voxels);
  });
}

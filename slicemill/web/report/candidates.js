// @ts-check
/** The list of candidates in the page of a scan: pictures, a threshold, and decisions. It asks nobody. */

import { PRESETS } from "../page/controls.js";
import { clean, cut, make, makeButton, makeOption } from "../page/dom.js";
import { AXES, PLANES } from "../page/geometry.js";
import { describeCandidate, describeThreshold, firstThreshold, format, listAbove } from "../page/nodules.js";
import { windowTable } from "../page/render.js";
import { fromCsv, toCsv } from "./csv.js";
import { highestHu, toHu, unpackBytes } from "./packed.js";

/** @typedef {import("../page/nodules.js").Candidate} Candidate */
/** @typedef {{field_mm: number, step_mm: number, data: string}} Views */
/**
 * @typedef {object} CandidatePage What slicemill/infer/candidates/page.py writes.
 * @property {string} scan
 * @property {import("../page/nodules.js").Rate[]} thresholds
 * @property {{row: Candidate, views: Views | null}[]} candidates
 * @property {number} view_px
 * @property {number} strip_px
 * @property {number} strip
 * @property {number} low_hu
 * @property {number} step_hu
 */
/** @typedef {{canvas: HTMLCanvasElement, hu: Int16Array}} Picture */

const BLACK = 0xff000000;
const RING_MM = 3;
/** The ring is that much wider than the ball of the candidate's volume. */
const NAMES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };
const SIDES = ["left", "right", "top", "bottom"];
const LUNG = "Lung";
const KEEP = "keep";
const REJECT = "reject";
const DECISIONS = [KEEP, REJECT, ""];
const DECIDED = /** @type {Record<string, string>} */ ({ [KEEP]: "kept", [REJECT]: "rejected", "": "" });
const COLUMNS = ["seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm", "volume_ml", "slice"];
const MORE_COLUMNS = ["malignancy", "decision", "comment"];
const LONGEST_COMMENT = 1000;
const SAME_MM = 0.01;
/** How far a row may be from its candidate, on each axis: spreadsheets round coordinates. */

/** Make a picture of `side` pixels, still empty. @param {number} side @param {string} text */
function makeCanvas(side, text) {
  const canvas = make("canvas");
  canvas.width = canvas.height = side;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", text);
  return canvas;
}

/** Paint HU on a canvas of the same size. @param {Picture} picture @param {Uint8Array} table */
function paintPicture({ canvas, hu }, table) {
  const context = canvas.getContext("2d");
  if (!context) return;
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < hu.length; i++) pixels[i] = BLACK + table[hu[i] + 32768] * 0x010101;
  context.putImageData(image, 0, 0);
}

/** Return a picture with its caption and the ring around the candidate.
 * @param {HTMLCanvasElement} canvas @param {string} caption @param {number} share of the ring, of the picture's side
 * @param {string[]} letters of its sides */
function frame(canvas, caption, share, letters) {
  const box = make("figure", "", "candidate-picture");
  const area = make("div", "", "candidate-area");
  area.append(canvas);
  if (share) {
    const ring = make("span", "", "ring");
    ring.style.width = ring.style.height = `${100 * share}%`;
    area.append(ring);
  }
  letters.forEach((letter, side) => area.append(make("span", letter, `letter ${SIDES[side]}`)));
  box.append(area, make("figcaption", caption));
  return box;
}

/** One candidate: a line that folds, its pictures and the decision. */
class Card {
  /** @param {Candidate} row @param {Views | null} views @param {CandidatePage} record @param {() => void} onDecide */
  constructor(row, views, record, onDecide) {
    this.row = row;
    this.views = views;
    this.record = record;
    this.onDecide = onDecide;
    this.decision = "";
    /** @type {Picture[]} */
    this.pictures = [];
    this.isRead = false;
    this.element = make("details", "", "candidate");
    this.badge = make("span", "", "badge");
    const summary = make("summary");
    summary.append(make("strong", `Candidate ${row.number}`), ` ${describeCandidate(row)} `, this.badge);
    this.summary = summary;
    this.comment = make("input");
    this.box = make("div", "", "candidate-pictures");
    this.element.append(summary, make("p", this.place(), "note"), this.box, this.actions());
    if (!views) this.box.append(make("p", "No pictures: they do not fit into this page.", "note"));
  }

  place() {
    const { x_mm, y_mm, z_mm } = this.row;
    const middle = [x_mm, y_mm, z_mm].map((value) => format(value, 1)).join(", ");
    const field = this.views ? ` Each picture is ${format(this.views.field_mm, 0)} mm wide.` : "";
    return `Center at ${middle} mm (LPS: to the left, to posterior, to superior).${field}`;
  }

  actions() {
    const bar = make("div", "", "candidate-actions");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", `Decision on candidate ${this.row.number}`);
    this.buttons = [
      makeButton("Keep", "Keep (k)", () => this.decide(KEEP)),
      makeButton("Reject", "Reject (r)", () => this.decide(REJECT)),
    ];
    this.comment.type = "text";
    this.comment.maxLength = LONGEST_COMMENT;
    this.comment.placeholder = "Comment";
    this.comment.setAttribute("aria-label", `Comment on candidate ${this.row.number}`);
    this.comment.addEventListener("input", () => this.onDecide());
    bar.append(...this.buttons, this.comment);
    this.show();
    return bar;
  }

  /** Decide; the same decision again takes it back. @param {string} decision */
  decide(decision) {
    this.set(this.decision === decision ? "" : decision, this.comment.value);
    this.onDecide();
  }

  /** @param {string} decision @param {string} comment */
  set(decision, comment) {
    this.decision = decision;
    this.comment.value = comment;
    this.show();
  }

  show() {
    this.buttons?.forEach((button, index) =>
      button.setAttribute("aria-pressed", String([KEEP, REJECT][index] === this.decision)),
    );
    this.badge.textContent = DECIDED[this.decision];
    this.element.dataset.decision = this.decision;
  }

  /** Read the pictures, once, and paint them. @param {Uint8Array} table */
  async read(table) {
    if (this.isRead || !this.views) return;
    this.isRead = true;
    const { view_px: side, strip_px: small, strip: count } = this.record;
    const hu = toHu(new Uint8Array(await unpackBytes(this.views.data)), this.record);
    const share = (this.row.diameter_mm + RING_MM) / this.views.field_mm;
    const views = make("div", "", "candidate-views");
    PLANES.forEach((plane, index) => {
      const canvas = makeCanvas(side, `${NAMES[plane]} view of candidate ${this.row.number}`);
      this.pictures.push({ canvas, hu: hu.subarray(index * side * side, (index + 1) * side * side) });
      views.append(frame(canvas, NAMES[plane], share, AXES[plane].letters));
    });
    const strip = make("div", "", "candidate-strip");
    for (let index = 0; index < count; index++) {
      const away = (index - (count - 1) / 2) * this.views.step_mm;
      const text = away ? `${away > 0 ? "+" : "−"}${format(Math.abs(away), 1)} mm` : `slice ${this.row.slice + 1}`;
      const canvas = makeCanvas(small, `Candidate ${this.row.number}, axial, ${text}`);
      const first = PLANES.length * side * side + index * small * small;
      this.pictures.push({ canvas, hu: hu.subarray(first, first + small * small) });
      strip.append(frame(canvas, text, 0, []));
    }
    this.box.replaceChildren(views, strip);
    this.paint(table);
  }

  /** @param {Uint8Array} table */
  paint(table) {
    for (const picture of this.pictures) paintPicture(picture, table);
  }

  /** Return the row of the table of decisions. */
  toRow() {
    const { x_mm, y_mm, z_mm, probability, diameter_mm, volume_ml, slice, malignancy } = this.row;
    const measured = [x_mm, y_mm, z_mm, probability, diameter_mm, volume_ml, slice, malignancy];
    return [this.record.scan, ...measured, this.decision, this.comment.value];
  }
}

class CandidateList {
  /** @param {HTMLElement} box @param {CandidatePage} record */
  constructor(box, record) {
    this.record = record;
    this.rows = record.candidates.map(({ row }) => row);
    this.threshold = firstThreshold(record.thresholds);
    this.presets = PRESETS.filter(([, { high }]) => high <= highestHu(record));
    this.table = this.windowTable(LUNG);
    this.isSaved = true;
    this.cards = record.candidates.map(({ row, views }) => new Card(row, views, record, () => this.onDecide()));
    const seen = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const card = this.cards.find(({ element }) => element === target);
        if (isIntersecting && card?.element.open) void card.read(this.table);
      }
    });
    for (const card of this.cards) {
      seen.observe(card.element);
      card.element.addEventListener("toggle", () => card.element.open && void card.read(this.table));
    }
    this.slider = make("input");
    this.text = make("p", "", "candidate-count");
    this.text.setAttribute("aria-live", "polite");
    this.state = make("p", "", "candidate-state");
    this.state.setAttribute("aria-live", "polite");
    box.append(this.thresholdBar(), this.bar(), ...this.cards.map(({ element }) => element));
    box.addEventListener("keydown", (event) => this.onKey(event));
    window.addEventListener("beforeunload", (event) => this.isSaved || event.preventDefault());
    this.setThreshold(this.threshold);
    this.showState();
  }

  /** Return the controls of the threshold. */
  thresholdBar() {
    const { slider, record } = this;
    slider.type = "range";
    slider.min = "0";
    slider.max = "1";
    slider.step = "any";
    slider.setAttribute("aria-label", "Threshold of the probability");
    slider.addEventListener("input", () => this.setThreshold(slider.valueAsNumber));
    slider.addEventListener("keydown", (event) => this.onSliderKey(event));
    const bar = make("div", "", "candidate-bar");
    for (const { rate, threshold } of record.thresholds) {
      const text = `About ${rate} false mark${rate === 1 ? "" : "s"} a scan`;
      bar.append(makeButton(text, `Threshold ${threshold}`, () => this.setThreshold(threshold)));
    }
    bar.append(makeButton("Unfold all", "Threshold 0", () => this.setThreshold(0)));
    const box = make("div", "", "candidate-threshold");
    const hint = make("p", "Candidates below the threshold are folded; a click on their line shows them.", "note");
    box.append(make("strong", "Threshold of the probability"), slider, this.text, bar, hint);
    return box;
  }

  /** Move a slider without steps by keys. @param {KeyboardEvent} event */
  onSliderKey(event) {
    const steps = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 });
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.setThreshold(Math.min(1, Math.max(0, Math.round(this.threshold * 100 + steps[event.key]) / 100)));
  }

  /** Return the window, and the controls of decisions. */
  bar() {
    const preset = make("select");
    preset.setAttribute("aria-label", "Window");
    preset.append(...this.presets.map(([name]) => makeOption(name, name)));
    preset.value = LUNG;
    preset.addEventListener("change", () => {
      this.table = this.windowTable(preset.value);
      for (const card of this.cards) card.paint(this.table);
    });
    const rings = makeButton("Rings", "Rings around the candidates", () => {
      const isOn = rings.getAttribute("aria-pressed") !== "true";
      rings.setAttribute("aria-pressed", String(isOn));
      rings.closest(".candidates")?.classList.toggle("no-rings", !isOn);
    });
    rings.setAttribute("aria-pressed", "true");
    const file = make("input");
    file.type = "file";
    file.accept = ".csv";
    file.hidden = true;
    file.addEventListener("change", () => void this.load(file));
    const bar = make("div", "", "candidate-bar");
    bar.append(preset, rings);
    bar.append(makeButton("Save decisions (CSV)", "Save all candidates with your decisions", () => this.save()));
    bar.append(makeButton("Load decisions", "Load a table that this page saved", () => file.click()), file);
    const box = make("div");
    const keys = "Keys: n and p go to the next and previous candidate, k keeps it, r rejects it.";
    box.append(bar, this.state, make("p", keys, "note"));
    return box;
  }

  /** @param {string} name of a preset */
  windowTable(name) {
    const { low, high } = (this.presets.find(([one]) => one === name) ?? this.presets[0])[1];
    return windowTable(low, high);
  }

  /** Fold the candidates below a threshold, and unfold the others. @param {number} threshold */
  setThreshold(threshold) {
    this.threshold = threshold;
    this.slider.value = String(threshold);
    const above = new Set(listAbove(this.rows, threshold));
    for (const card of this.cards) {
      card.element.open = above.has(card.row);
      card.element.classList.toggle("is-below", !above.has(card.row));
    }
    const text = describeThreshold(this.rows, this.record.thresholds, threshold);
    this.text.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }

  onDecide() {
    this.isSaved = false;
    this.showState();
  }

  /** Show how many are decided. @param {string} [more] */
  showState(more = "") {
    const count = (/** @type {string} */ decision) => this.cards.filter((one) => one.decision === decision).length;
    const saved = this.isSaved ? "" : " Not saved yet.";
    this.state.textContent = `${count(KEEP)} kept, ${count(REJECT)} rejected, ${count("")} not decided.${saved}${more}`;
  }

  /** Offer the decisions as a file. */
  save() {
    const rows = [[...COLUMNS, ...MORE_COLUMNS], ...this.cards.map((card) => card.toRow())];
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([toCsv(rows)], { type: "text/csv" }));
    link.download = `${this.record.scan.replace(/[^\w.-]+/g, "_")}.decisions.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
    this.isSaved = true;
    this.showState();
  }

  /** Take the decisions of a file that this page, or an earlier one of the scan, saved.
   * @param {HTMLInputElement} input */
  async load(input) {
    const file = input.files?.[0];
    if (!file) return;
    const name = clean(file.name);
    const [header = [], ...rows] = fromCsv(await file.text());
    input.value = ""; // the same file can be chosen again
    const [decision, comment, scan] = ["decision", "comment", "seriesuid"].map((column) => header.indexOf(column));
    const place = COLUMNS.slice(1, 4).map((column) => header.indexOf(column));
    if ([decision, comment, scan, ...place].includes(-1)) {
      this.showState(` ${name} is no table of decisions: it needs the columns of a file that this page saved.`);
      return;
    }
    let found = 0;
    for (const row of rows.filter((one) => one[scan] === this.record.scan && DECISIONS.includes(one[decision]))) {
      const card = this.cardAt(place.map((column) => Number(row[column])));
      card?.set(row[decision], cut(row[comment] ?? "", LONGEST_COMMENT));
      found += card ? 1 : 0;
    }
    const left = rows.length - found;
    const others = left ? `; ${left} rows are of no candidate of this page` : "";
    this.showState(` ${found} loaded from ${name}${others}.`);
  }

  /** Return the candidate nearest to a place, if one is there. @param {number[]} place x, y, z, mm */
  cardAt(place) {
    /** @param {Card} card */
    const awayFrom = ({ row: { x_mm, y_mm, z_mm } }) =>
      Math.max(...[x_mm, y_mm, z_mm].map((value, axis) => Math.abs(value - place[axis])));
    return this.cards
      .filter((card) => awayFrom(card) <= SAME_MM)
      .sort((one, other) => awayFrom(one) - awayFrom(other))
      .at(0);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const { target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (target instanceof HTMLInputElement || target instanceof HTMLSelectElement) return;
    const index = this.cards.findIndex(({ element }) => target instanceof Node && element.contains(target));
    if (event.key === "n") this.cards[Math.min(this.cards.length - 1, index + 1)].summary.focus();
    else if (event.key === "p") this.cards[Math.max(0, index - 1)].summary.focus();
    else if (event.key === "k" && index >= 0) this.cards[index].decide(KEEP);
    else if (event.key === "r" && index >= 0) this.cards[index].decide(REJECT);
    else return;
    event.preventDefault();
  }
}

for (const box of document.querySelectorAll(".candidates")) {
  const data = box.querySelector("script");
  if (!(box instanceof HTMLElement) || !data) continue;
  if (typeof DecompressionStream === "undefined") {
    document.querySelector(".candidates-failed")?.removeAttribute("hidden");
    continue;
  }
  const record = /** @type {CandidatePage} */ (JSON.parse(data.textContent ?? ""));
  data.remove(); // the page needs the text no longer
  box.hidden = false;
  new CandidateList(box, record);
}

// @ts-check
/** The case that is shown: position, window, switches, and what of it was read. */

import { getCase, getParts, getProgress, RequestError, Sections } from "./api.js";
import { fitWindow, PRESETS } from "./controls.js";
import { byId, clean, fillList } from "./dom.js";
import { AXES, extent, moved, PLANES, sectionSize, toMm, toSection, wholeView, zoomed } from "./geometry.js";
import { describeHeat, drawHeat } from "./heat.js";
import { listLabels, makeOverlays, showLabels } from "./labels.js";
import { Lengths } from "./lengths.js";
import { Pane } from "./pane.js";
import { chooseLabel, chosenLabel, markRow, middleOf, showParts } from "./parts.js";
import { windowTable } from "./render.js";
import { SurfacePane } from "./surface_pane.js";

/** @typedef {import("./geometry.js").Plane} Plane */
/** @typedef {import("./geometry.js").Voxel} Voxel */
/** @typedef {import("./geometry.js").View} View */
/** @typedef {import("./api.js").Progress} Progress */
/** @typedef {import("./api.js").CaseInfo} CaseInfo */
/** @typedef {"outline" | "fill" | "masks" | "crosshair" | "measuring" | "allPlanes"} Switch */

const AHEAD = 8;
/** Sections that are loaded ahead, in the direction of scrolling. */
const POLL_MS = 200;
const SLOW_POLL_MS = 1000;
const LOOKING = "Looking for parts …";
const PRELIMINARY = ", preliminary mask: the model's rules come at the end";

/** Volumes not read yet. @param {Progress} progress */
const unread = ({ image, masks }) => [image, ...masks].filter((one) => one && !one.is_complete && !one.failure);
const sleep = (/** @type {number} */ ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Viewer {
  /** @param {number} caseCount @param {(text: string) => void} onError */
  constructor(caseCount, onError) {
    this.caseCount = caseCount;
    this.onError = onError;
    this.onControls = () => {};
    this.number = -1;
    /** @type {CaseInfo | null} */
    this.info = null;
    /** @type {Progress | null} */
    this.progress = null;
    this.sections = new Sections(0, 0);
    /** @type {Voxel} */
    this.cursor = { x: 0, y: 0, z: 0 };
    this.hasMoved = false;
    /** @type {Plane} */
    this.plane = "axial";
    this.isSolid = false; // whether the 3-D picture is the large one
    this.window = PRESETS[0][1];
    this.table = windowTable(this.window.low, this.window.high);
    this.switches = { outline: true, fill: false, masks: true, crosshair: true, measuring: false, allPlanes: true };
    /** @type {Record<Plane, View>} */
    this.views = { axial: wholeView(NONE), coronal: wholeView(NONE), sagittal: wholeView(NONE) };
    /** @type {Record<Plane, number>} */
    this.direction = { axial: 1, coronal: 1, sagittal: 1 };
    /** @type {import("./labels.js").ShownLabel[]} */
    this.labels = [];
    /** @type {Omit<import("./render.js").Overlay, "values">[]} */
    this.overlays = [];
    /** @type {import("./labels.js").ShownLabel | null} */
    this.partsOf = null;
    /** @type {import("./api.js").Parts | null} */
    this.parts = null;
    this.partsFailure = "";
    /** @type {object?} */
    this.asked = null; // for parts
    /** @type {number | null} */
    this.part = null;
    this.lengths = new Lengths();
    this.isDrawing = false;
    this.panes = PLANES.map((plane) => new Pane(plane, this.host(), () => this.update()));
    this.surface = new SurfacePane({
      activate: () => this.activateSurface(),
      point: (voxel) => this.moveTo(voxel),
      redraw: () => this.update(),
    });
    byId("panes", HTMLElement).append(...this.panes.map((pane) => pane.element), this.surface.element);
    new ResizeObserver(() => this.update()).observe(byId("heat", HTMLElement));
  }

  /** @returns {import("./pane.js").Host} */
  host() {
    return {
      activate: (plane) => this.activate(plane),
      scroll: (plane, steps) => this.scroll(plane, steps),
      zoom: (plane, factor, column, row) => this.zoom(plane, factor, column, row),
      move: (plane, columns, rows) => this.move(plane, columns, rows),
      point: (voxel) => this.moveTo(voxel),
      hover: (_, voxel) => this.showPointer(voxel),
      changeWindow: (level, width) => this.shiftWindow(level, width),
      measure: (plane, from, to, isDone) => this.measure(plane, from, to, isDone),
      isMeasuring: () => this.switches.measuring,
    };
  }

  /** Open a case. @param {number} number */
  async open(number) {
    this.close();
    this.number = number;
    this.progress = null;
    this.parts = null;
    this.partsFailure = "";
    this.part = null;
    this.partsOf = null;
    this.hasMoved = false;
    byId("panes", HTMLElement).ariaBusy = "true";
    this.clearLengths();
    byId("labels", HTMLElement).replaceChildren();
    for (const pane of this.panes) pane.clear();
    this.surface.open(number, false);
    this.isSolid = false;
    try {
      const info = await getCase(number);
      if (number !== this.number) return;
      this.info = info;
      this.sections = new Sections(number, info.masks.length);
      this.surface.open(
        number,
        info.masks.some((mask) => !mask.failure),
      );
      this.cursor = { x: info.shape[2] >> 1, y: info.shape[1] >> 1, z: info.shape[0] >> 1 };
      this.resetViews();
      await this.follow(number);
    } catch (error) {
      if (number !== this.number) return;
      byId("panes", HTMLElement).ariaBusy = "false";
      this.fail(error);
    }
  }

  /** Follow the reading of a case until all of it was read. @param {number} number */
  async follow(number) {
    for (let round = 0; number === this.number; round++) {
      const progress = await getProgress(number);
      if (number !== this.number || !this.info) return;
      this.applyProgress(progress, this.info);
      if (!unread(progress).length) break;
      await sleep(round < 100 ? POLL_MS : SLOW_POLL_MS);
    }
    // the next case is read meanwhile; if it cannot be, its turn will show why
    if (number === this.number && number + 1 < this.caseCount) await getCase(number + 1).catch(() => null);
  }

  /** @param {Progress} progress @param {CaseInfo} info */
  applyProgress(progress, info) {
    const isChanged = JSON.stringify(progress) !== JSON.stringify(this.progress);
    this.progress = progress;
    if (!isChanged) return;
    this.sections.setProgress(progress.masks);
    if (!this.hasMoved && this.part === null && progress.image.first_slice !== null) {
      this.cursor.z = progress.image.is_complete ? info.shape[0] >> 1 : progress.image.first_slice;
    }
    if (progress.image.failure) this.onError(progress.image.failure);
    this.listLabels(progress, info);
    this.partsOf = chooseLabel(this.labels, info.masks, this.partsOf);
    void this.loadParts();
    this.showReading(progress, info);
    this.update();
  }

  /** @param {Progress} progress @param {CaseInfo} info */
  listLabels(progress, info) {
    this.labels = listLabels(info.masks, progress.masks, this.labels);
    this.overlays = makeOverlays(this.labels, info.masks.length);
    showLabels(this.labels, info, progress.masks, () => {
      this.overlays = makeOverlays(this.labels, info.masks.length);
      this.update();
    });
  }

  /** Show what reaches a threshold of the map of probabilities, and its parts. @param {number} value 1 to 255 */
  setThreshold(value) {
    const { info, progress } = this;
    const map = info?.masks.find((mask) => mask.threshold);
    if (!info || !progress || !map) return;
    map.threshold = value;
    for (const label of this.labels) label.isShown ||= info.masks[label.mask] === map;
    this.listLabels(progress, info);
    chooseLabel(this.labels, info.masks, this.labels.find((label) => info.masks[label.mask] === map) ?? null);
    this.changeParts();
  }

  /** Show no case. */
  close() {
    this.number = -1;
    this.asked = null;
    this.sections.stop();
    this.info = null;
  }

  /** @param {Progress} progress @param {CaseInfo} info */
  showReading(progress, info) {
    const { image, masks, warnings } = progress;
    const volumes = [image, ...masks].filter((one) => one !== null);
    const read = volumes.reduce((sum, one) => sum + one.slices, 0);
    const all = volumes.length * info.shape[0];
    byId("reading", HTMLElement).hidden = !unread(progress).length;
    byId("reading-text", HTMLElement).textContent = `Reading: ${read} of ${all} slices`;
    byId("reading-bar", HTMLProgressElement).value = read / all;
    fillList(byId("warnings", HTMLElement), warnings.map(clean));
    byId("warnings-box", HTMLElement).hidden = !warnings.length;
  }

  /** Load the parts of the chosen label, once its mask was read. */
  async loadParts() {
    const { partsOf } = this;
    const progress = partsOf && this.progress?.masks[partsOf.mask];
    const image = this.progress?.image;
    const isRead = progress?.is_complete && (image?.is_complete || image?.failure);
    if (partsOf && isRead && !this.parts && !this.partsFailure) {
      this.partsFailure = LOOKING;
      const asked = (this.asked = {});
      try {
        const parts = await getParts(this.number, partsOf.mask, partsOf.value);
        if (asked !== this.asked) return;
        this.parts = parts;
        this.partsFailure = "";
        if (!this.hasMoved && parts.count) this.jumpTo(parts.parts[0], false);
      } catch (error) {
        if (asked !== this.asked) return;
        this.partsFailure = error instanceof Error ? error.message : String(error);
      }
    }
    const isTumor = partsOf !== null && this.info?.masks[partsOf.mask].tumor === partsOf.value;
    showParts(
      this.parts,
      partsOf?.shownName ?? "",
      isTumor ? "lesion" : "part",
      this.partsFailure || (partsOf ? "Reading …" : ""),
      (part) => this.jumpTo(part),
    );
    markRow(this.part);
    this.update();
  }

  changeParts() {
    this.partsOf = chosenLabel(this.labels);
    this.parts = null;
    this.part = null;
    this.partsFailure = "";
    void this.loadParts();
  }

  /** @param {unknown} error */
  fail(error) {
    if (error instanceof DOMException && error.name === "AbortError") return;
    this.onError(error instanceof Error ? error.message : String(error));
  }

  get sliceCount() {
    return this.info ? this.info.shape[0] : 1;
  }

  /** @param {Voxel} voxel */
  moveTo(voxel) {
    if (!this.info) return;
    for (const axis of /** @type {const} */ (["x", "y", "z"])) {
      const most = extent(this.info.shape, axis) - 1;
      this.cursor[axis] = Math.min(most, Math.max(0, Math.round(voxel[axis])));
    }
    this.hasMoved = true;
    this.update();
  }

  /** Go on along a plane's sections: axial pictures run from inferior to superior.
   * @param {Plane} plane @param {number} steps */
  scroll(plane, steps) {
    const { across } = AXES[plane];
    this.direction[plane] = Math.sign(steps) || 1;
    this.moveTo({ ...this.cursor, [across]: this.cursor[across] + steps });
  }

  /** @param {number} index of a section of the plane that has the focus */
  goTo(index) {
    if (this.info) {
      const { across } = AXES[this.plane];
      this.moveTo({ ...this.cursor, [across]: Math.min(index, extent(this.info.shape, across) - 1) });
    }
  }

  /** @param {number} z */
  goToSlice(z) {
    this.moveTo({ ...this.cursor, z });
  }

  /** Move the crosshair within the picture. @param {number} columns @param {number} rows */
  nudge(columns, rows) {
    const { right, down } = AXES[this.plane];
    const voxel = { ...this.cursor };
    voxel[right] += columns;
    voxel[down] += down === "z" ? -rows : rows;
    this.moveTo(voxel);
  }

  /** Go to the next part, or the previous one. @param {number} step */
  jump(step) {
    const parts = this.parts?.parts ?? [];
    if (!parts.length) return;
    const index = parts.findIndex((part) => part.id === this.part);
    this.jumpTo(parts[index < 0 ? 0 : (index + step + parts.length) % parts.length]);
  }

  /** @param {import("./api.js").Part} part @param {boolean} [isMove] whether a person chose it */
  jumpTo(part, isMove = true) {
    this.part = part.id;
    markRow(part.id);
    this.moveTo(middleOf(part));
    this.hasMoved = isMove;
  }

  /** @param {Plane} plane */
  activate(plane) {
    if (plane === this.plane && !this.isSolid) return;
    this.plane = plane;
    this.isSolid = false;
    this.update();
  }

  /** Show the 3-D picture large, if there is one. */
  activateSurface() {
    if (this.isSolid || this.surface.element.hidden) return;
    this.isSolid = true;
    this.update();
  }

  /** @param {import("./controls.js").Window} window */
  setWindow(window) {
    this.window = window;
    this.table = windowTable(window.low, window.high);
    this.update();
  }

  /** @param {number} level @param {number} width changes, HU */
  shiftWindow(level, width) {
    const { low, high } = this.window;
    this.setWindow(
      fitWindow({
        low: low + level - width / 2,
        high: Math.max(low + level - width / 2 + 1, high + level + width / 2),
      }),
    );
  }

  /** @param {Switch} name */
  flip(name) {
    this.switches[name] = !this.switches[name];
    this.lengths.forgetFirst();
    this.update();
  }

  /** Zoom around a place of the section, or its middle. @param {Plane} plane @param {number} factor
   * @param {number} [column] @param {number} [row] */
  zoom(plane, factor, column, row) {
    this.views[plane] = zoomed(this.views[plane], factor, column, row);
    this.update();
  }

  /** @param {Plane} plane @param {number} columns @param {number} rows */
  move(plane, columns, rows) {
    if (!this.info) return;
    const size = sectionSize(plane, this.info.shape, this.info.spacing_mm);
    this.views[plane] = moved(this.views[plane], size, columns, rows);
    this.update();
  }

  resetViews() {
    if (!this.info) return;
    for (const plane of PLANES) {
      this.views[plane] = wholeView(sectionSize(plane, this.info.shape, this.info.spacing_mm));
    }
    this.surface.resetView();
    this.update();
  }

  /** @param {Plane} plane @param {Voxel} from @param {Voxel} to @param {boolean} isDone */
  measure(plane, from, to, isDone) {
    if (!this.info) return;
    this.lengths.add(plane, from, to, this.info.affine_lps, isDone);
    this.update();
  }

  /** Put an end of a length at the crosshair. */
  placeEnd() {
    if (!this.switches.measuring || !this.info) return;
    this.lengths.placeEnd(this.plane, { ...this.cursor }, this.info.affine_lps);
    this.update();
  }

  clearLengths() {
    this.lengths.clear();
    this.switches.measuring = false;
    this.update();
  }

  /** @param {Voxel | null} voxel */
  showPointer(voxel) {
    byId("pointer", HTMLElement).textContent = (voxel && this.describeVoxel(voxel)) || "\u00a0";
  }

  /** Return position, HU and labels of a voxel. @param {Voxel} voxel */
  describeVoxel(voxel) {
    if (!this.info) return "";
    const [x, y, z] = toMm(this.info.affine_lps, voxel).map((mm) => mm.toFixed(1));
    const parts = [`voxel ${voxel.x}, ${voxel.y}, ${voxel.z}`, `${x}, ${y}, ${z} mm (L, P, S)`];
    const plane = PLANES.find((one) => this.sections.get(one, voxel[AXES[one].across]));
    const section = plane && this.sections.get(plane, voxel[AXES[plane].across]);
    if (plane && section) {
      const { column, row } = toSection(plane, voxel, this.info.shape);
      const index = row * sectionSize(plane, this.info.shape, this.info.spacing_mm).columns + column;
      parts.push(`${section.image[index]} HU`);
      section.masks.forEach((values, mask) => {
        const label = values && this.labels.find((one) => one.mask === mask && one.value === values[index]);
        if (label) parts.push(label.shownName);
      });
    }
    return parts.join("  |  ");
  }

  /** Draw everything with the next frame. */
  update() {
    this.onControls();
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => {
      this.isDrawing = false;
      this.draw();
    });
  }

  draw() {
    const { info } = this;
    const { element } = this.surface;
    const small = element.hidden ? "two-small" : "three-small";
    byId("panes", HTMLElement).className = `panes ${this.switches.allPlanes ? "all" : "one"} ${small}`;
    for (const pane of this.panes)
      pane.element.classList.toggle("is-large", !this.isSolid && pane.plane === this.plane);
    element.classList.toggle("is-large", this.isSolid);
    if (!info) return;
    if (element.offsetParent !== null) {
      // what reaches a threshold is not shown in 3-D: it changes while a hand moves
      const labels = this.labels.filter((label) => label.isShown && !info.masks[label.mask].threshold);
      const masks = this.progress?.masks ?? [];
      this.surface.load(labels, masks);
      this.surface.draw({
        info,
        labels: this.switches.masks ? labels : [],
        isReading: !this.progress || masks.some((mask) => mask && !mask.is_complete && !mask.failure),
        cursor: this.cursor,
        crosshair: this.switches.crosshair,
      });
    }
    const shown = this.panes.filter((pane) => pane.element.offsetParent !== null);
    for (const pane of shown) pane.draw(this.makeScene(pane.plane, info));
    this.drawSlider(info);
    byId("panes", HTMLElement).ariaBusy = String(this.isBusy(shown));
  }

  /** Whether more is to come, such as a jump to the first part. @param {Pane[]} shown */
  isBusy(shown) {
    if (!this.progress || this.partsFailure === LOOKING || unread(this.progress).length) return true;
    return !this.progress.image.failure && shown.some((pane) => !pane.scene?.section);
  }

  /** @param {Plane} plane @param {CaseInfo} info @returns {import("./pane.js").Scene} */
  makeScene(plane, info) {
    const index = this.cursor[AXES[plane].across];
    const most = extent(info.shape, AXES[plane].across);
    const section = this.fetchSection(plane, index, info);
    const overlays = this.overlays.flatMap((overlay, mask) => {
      const values = section?.masks[mask];
      return values && this.switches.masks ? [{ ...overlay, values }] : [];
    });
    const isPreliminary = section?.masks.some((values, mask) => values && !this.progress?.masks[mask]?.is_complete);
    return {
      info,
      section,
      overlays,
      overlayKey: this.switches.masks && this.overlays,
      view: this.views[plane],
      cursor: this.cursor,
      table: this.table,
      style: this.switches,
      crosshair: this.switches.crosshair,
      lengths: this.lengths.shown,
      waiting: this.progress?.image.failure ? "Not readable" : "Reading …",
      description: `${plane} ${index + 1} of ${most}${isPreliminary ? PRELIMINARY : ""}`,
    };
  }

  /** Return a section if it is here; else load it, and those after it.
   * @param {Plane} plane @param {number} index @param {CaseInfo} info */
  fetchSection(plane, index, info) {
    const image = this.progress?.image;
    if (!image || image.failure || image.first_slice === null) return undefined;
    if (plane !== "axial" && !image.is_complete) return undefined;
    const most = extent(info.shape, AXES[plane].across);
    const wanted = Array.from({ length: AHEAD + 1 }, (_, step) => index + step * this.direction[plane]);
    const inside = wanted.filter((one) => one >= 0 && one < most);
    this.sections.keepOnly(plane, inside);
    const ahead = image.is_complete ? inside : [index];
    for (const one of ahead) {
      if (this.sections.isCurrent(plane, one)) continue;
      this.sections.load(plane, one).then(
        () => one === this.cursor[AXES[plane].across] && this.update(),
        (error) => {
          if (error instanceof RequestError && error.status === 503) this.update();
          else this.fail(error);
        },
      );
    }
    return this.sections.get(plane, index);
  }

  /** @param {CaseInfo} info */
  drawSlider(info) {
    const { across } = AXES[this.plane];
    const count = extent(info.shape, across);
    const slider = byId("slice", HTMLInputElement);
    slider.max = String(count);
    slider.value = String(this.cursor[across] + 1);
    const text = `${this.plane} ${this.cursor[across] + 1} of ${count}`;
    byId("slice-label", HTMLElement).textContent = text;
    slider.setAttribute("aria-valuetext", text);
    const counts = this.parts?.slice_voxels ?? [];
    const heat = byId("heat", HTMLCanvasElement);
    const name = this.partsOf?.shownName ?? "";
    drawHeat(heat, counts, this.partsOf?.color ?? [0, 0, 0], this.cursor.z);
    heat.setAttribute(
      "aria-label",
      counts.length ? describeHeat(counts, name) : "Amount of a label along the slices",
    );
    const here = counts[this.cursor.z] ? `, ${counts[this.cursor.z]} voxels of ${name}` : "";
    byId("live", HTMLElement).textContent = `axial ${this.cursor.z + 1} of ${info.shape[0]}${here}`;
  }
}

const NONE = { columns: 1, rows: 1 };

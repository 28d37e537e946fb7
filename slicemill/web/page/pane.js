// @ts-check
/** A pane: one plane's picture, with its crosshair, lengths and letters, and what a hand does on it. */

import { fingerDistance, make, makePane, wheelDistance } from "./dom.js";
import { AXES, makeMapping, sectionSize, toSection, toVoxel } from "./geometry.js";
import { paint } from "./render.js";

/** @typedef {import("./geometry.js").Plane} Plane */
/** @typedef {import("./geometry.js").Voxel} Voxel */
/** @typedef {import("./geometry.js").View} View */
/** @typedef {import("./lengths.js").Length} Length */
/**
 * @typedef {object} Scene What a pane shows.
 * @property {import("./api.js").CaseInfo} info
 * @property {import("./api.js").Section | undefined} section undefined while it is loaded
 * @property {View} view
 * @property {Voxel} cursor
 * @property {Uint8Array} table
 * @property {import("./render.js").Overlay[]} overlays
 * @property {unknown} overlayKey differs when the overlays do
 * @property {{outline: boolean, fill: boolean}} style
 * @property {boolean} crosshair
 * @property {Length[]} lengths
 * @property {string} waiting shown while there is no section
 * @property {string} description
 */
/**
 * @typedef {object} Host What the page does when a hand moves on a pane.
 * @property {(plane: Plane) => void} activate
 * @property {(plane: Plane, steps: number) => void} scroll
 * @property {(plane: Plane, factor: number, column: number, row: number) => void} zoom
 * @property {(plane: Plane, columns: number, rows: number) => void} move
 * @property {(voxel: Voxel) => void} point
 * @property {(plane: Plane, voxel: Voxel | null) => void} hover
 * @property {(level: number, width: number) => void} changeWindow
 * @property {(plane: Plane, from: Voxel, to: Voxel, isDone: boolean) => void} measure
 * @property {() => boolean} isMeasuring
 */

const WHEEL_STEP = 40;
/** Wheel distance of one slice, CSS pixels; a notch of a mouse is at least that. */
const TOUCH_STEP = 14;
/** Finger distance of one slice, CSS pixels. */

export class Pane {
  /** @param {Plane} plane @param {Host} host @param {() => void} onResize */
  constructor(plane, host, onResize) {
    this.plane = plane;
    this.host = host;
    const parts = makePane(plane, `${plane} picture; arrow keys change the slice`);
    this.element = parts.element;
    this.canvas = parts.canvas;
    this.marks = parts.marks;
    this.caption = parts.caption;
    this.waiting = parts.waiting;
    this.context = this.canvas.getContext("2d", { willReadFrequently: true }); // pixels come from the processor
    AXES[plane].letters.forEach((letter, index) => {
      const span = make("span", letter, `letter ${["left", "right", "top", "bottom"][index]}`);
      span.ariaHidden = "true";
      this.element.append(span);
    });
    /** @type {Scene | null} */
    this.scene = null;
    /** @type {ImageData | null} */
    this.pixels = null;
    /** @type {unknown[] | null} What the picture that was painted last depends on. */
    this.painted = null;
    this.wheel = 0;
    /** @type {Map<number, {x: number, y: number}>} */
    this.fingers = new Map();
    /** @type {{kind: "point" | "move" | "window" | "measure" | "touch", x: number, y: number,
     *   from: Voxel | null} | null} */
    this.drag = null;
    new ResizeObserver((entries) => {
      this.fit(entries[0]);
      onResize();
    }).observe(this.element);
    this.listen();
  }

  /** Give the canvases one pixel per device pixel. @param {ResizeObserverEntry} entry */
  fit(entry) {
    const exact = entry.devicePixelContentBoxSize?.[0];
    const box = entry.contentRect;
    const width = Math.max(1, exact ? exact.inlineSize : Math.round(box.width * devicePixelRatio));
    const height = Math.max(1, exact ? exact.blockSize : Math.round(box.height * devicePixelRatio));
    for (const canvas of [this.canvas, this.marks]) {
      canvas.width = width;
      canvas.height = height;
    }
    this.pixels = null;
    this.painted = null;
  }

  /** @param {Scene} scene */
  draw(scene) {
    this.scene = scene;
    this.caption.textContent = scene.description;
    this.canvas.setAttribute("aria-label", scene.description);
    this.waiting.textContent = scene.section ? "" : scene.waiting;
    this.element.classList.toggle("is-waiting", !scene.section);
    this.drawMarks(scene);
    const { context } = this;
    if (!context || !scene.section || !this.isChanged(scene)) return;
    const { width, height } = this.canvas;
    this.pixels ??= context.createImageData(width, height);
    const { columns, rows } = this.size(scene);
    paint(
      { image: scene.section.image, columns, rows },
      this.mapping(scene),
      scene.table,
      scene.overlays,
      { ...scene.style, width: this.outlineWidth() },
      width,
      height,
      new Uint32Array(this.pixels.data.buffer),
    );
    context.putImageData(this.pixels, 0, 0);
  }

  /** Whether the picture differs from the one painted last. @param {Scene} scene */
  isChanged({ section, view, table, overlayKey, style }) {
    const { width, height } = this.canvas;
    const key = [
      section,
      view.zoom,
      view.column,
      view.row,
      table,
      overlayKey,
      style.outline,
      style.fill,
      width,
      height,
    ];
    const isSame = this.painted?.every((part, index) => part === key[index]) ?? false;
    this.painted = key;
    return !isSame;
  }

  /** Width of an outline, device pixels. */
  outlineWidth() {
    return Math.max(1, Math.round(1.5 * devicePixelRatio));
  }

  /** @param {Scene} scene */
  size(scene) {
    return sectionSize(this.plane, scene.info.shape, scene.info.spacing_mm);
  }

  /** @param {Scene} scene */
  mapping(scene) {
    return makeMapping(this.size(scene), scene.view, this.canvas.width, this.canvas.height);
  }

  /** @param {Scene} scene */
  drawMarks(scene) {
    const context = this.marks.getContext("2d");
    if (!context) return;
    const { width, height } = this.marks;
    context.clearRect(0, 0, width, height);
    const map = this.mapping(scene);
    const at = (/** @type {Voxel} */ voxel) => {
      const { column, row } = toSection(this.plane, voxel, scene.info.shape);
      return [map.originX + (column + 0.5) * map.scaleX, map.originY + (row + 0.5) * map.scaleY];
    };
    if (scene.crosshair) this.drawCrosshair(context, at(scene.cursor));
    const { across } = AXES[this.plane];
    context.lineWidth = 2 * devicePixelRatio;
    context.strokeStyle = context.fillStyle = "#ffe14d";
    context.font = `${13 * devicePixelRatio}px system-ui, sans-serif`;
    for (const { plane, from, to, mm } of scene.lengths) {
      if (plane !== this.plane || from[across] !== scene.cursor[across]) continue;
      const [[x, y], [endX, endY]] = [at(from), at(to)];
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(endX, endY);
      context.stroke();
      context.fillText(`${mm.toFixed(1)} mm`, endX + 6 * devicePixelRatio, endY - 6 * devicePixelRatio);
    }
  }

  /** Lines with a gap in the middle, so that they hide nothing there.
   * @param {CanvasRenderingContext2D} context @param {number[]} center */
  drawCrosshair(context, [x, y]) {
    const { width, height } = this.marks;
    const gap = 12 * devicePixelRatio;
    context.lineWidth = devicePixelRatio;
    context.strokeStyle = "rgba(120, 220, 140, 0.75)";
    context.beginPath();
    for (const [fromX, fromY, toX, toY] of [
      [0, y, x - gap, y],
      [x + gap, y, width, y],
      [x, 0, x, y - gap],
      [x, y + gap, x, height],
    ]) {
      context.moveTo(fromX, fromY);
      context.lineTo(toX, toY);
    }
    context.stroke();
  }

  /** Return the voxel under a pointer, with fractions cut if `isWhole`; null outside of the section.
   * @param {{clientX: number, clientY: number}} event @param {boolean} isWhole */
  voxelAt(event, isWhole = true) {
    const scene = this.scene;
    if (!scene) return null;
    const place = this.placeAt(event, scene);
    const size = this.size(scene);
    if (place.column < 0 || place.row < 0 || place.column >= size.columns || place.row >= size.rows) return null;
    const column = isWhole ? Math.floor(place.column) : place.column - 0.5;
    const row = isWhole ? Math.floor(place.row) : place.row - 0.5;
    return toVoxel(this.plane, column, row, scene.cursor, scene.info.shape);
  }

  /** @param {{clientX: number, clientY: number}} event @param {Scene} scene */
  placeAt(event, scene) {
    const box = this.canvas.getBoundingClientRect();
    const map = this.mapping(scene);
    const x = ((event.clientX - box.left) * this.canvas.width) / box.width;
    const y = ((event.clientY - box.top) * this.canvas.height) / box.height;
    return { column: (x - map.originX) / map.scaleX, row: (y - map.originY) / map.scaleY };
  }

  /** Show nothing. */
  clear() {
    this.scene = null;
    this.painted = null;
    this.caption.textContent = "";
    this.waiting.textContent = "";
    this.context?.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.marks.getContext("2d")?.clearRect(0, 0, this.marks.width, this.marks.height);
  }

  listen() {
    const { element } = this;
    element.addEventListener("focus", () => this.host.activate(this.plane));
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    element.addEventListener("pointerdown", (event) => this.onDown(event));
    element.addEventListener("pointermove", (event) => this.onMove(event));
    element.addEventListener("pointerleave", () => this.host.hover(this.plane, null));
    for (const name of /** @type {const} */ (["pointerup", "pointercancel"])) {
      element.addEventListener(name, (event) => this.onUp(event));
    }
  }

  /** @param {WheelEvent} event */
  onWheel(event) {
    if (!this.scene) return;
    event.preventDefault();
    this.host.activate(this.plane);
    const distance = wheelDistance(event);
    if (event.ctrlKey) {
      const { column, row } = this.placeAt(event, this.scene);
      this.host.zoom(this.plane, Math.exp(-distance / 300), column, row);
      return;
    }
    this.wheel += distance;
    const steps = Math.trunc(this.wheel / WHEEL_STEP);
    this.wheel -= steps * WHEEL_STEP;
    if (steps) this.host.scroll(this.plane, -steps);
  }

  /** @param {PointerEvent} event */
  onDown(event) {
    if (!this.scene) return;
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const [x, y] = [event.clientX, event.clientY];
    if (this.host.isMeasuring() && event.button === 0 && this.fingers.size === 1) {
      this.drag = { kind: "measure", x, y, from: this.voxelAt(event, false) };
    } else if (event.pointerType === "touch") {
      this.drag = { kind: "touch", x, y, from: null };
    } else if (event.button === 1 || (event.button === 0 && event.shiftKey)) {
      event.preventDefault();
      this.drag = { kind: "move", x, y, from: null };
    } else {
      this.drag = { kind: event.button === 2 ? "window" : "point", x, y, from: null };
      if (event.button === 0) this.pointAt(event);
    }
  }

  /** @param {PointerEvent} event */
  onMove(event) {
    this.host.hover(this.plane, this.voxelAt(event));
    const { drag, scene } = this;
    if (!drag || !scene) return;
    if (this.fingers.size === 2) {
      this.onPinch(event, scene);
      return;
    }
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (drag.kind === "point") this.pointAt(event);
    if (drag.kind === "measure") this.measureTo(event, false);
    if (drag.kind === "touch") {
      const steps = Math.trunc(y / TOUCH_STEP);
      if (steps) {
        this.host.scroll(this.plane, -steps);
        drag.y += steps * TOUCH_STEP;
      }
      return;
    }
    if (drag.kind === "window") this.host.changeWindow(y, x);
    if (drag.kind === "move") this.moveBy(x, y, scene);
    if (drag.kind !== "measure") Object.assign(drag, { x: event.clientX, y: event.clientY });
  }

  /** Zoom and move with two fingers. @param {PointerEvent} event @param {Scene} scene */
  onPinch(event, scene) {
    const before = [...this.fingers.values()];
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const after = [...this.fingers.values()];
    const middle = (/** @type {{x: number, y: number}[]} */ [a, b]) => ({
      clientX: (a.x + b.x) / 2,
      clientY: (a.y + b.y) / 2,
    });
    const { column, row } = this.placeAt(middle(after), scene);
    this.host.zoom(this.plane, fingerDistance(after) / fingerDistance(before), column, row);
    const [from, to] = [middle(before), middle(after)];
    this.moveBy(to.clientX - from.clientX, to.clientY - from.clientY, scene);
  }

  /** @param {number} x @param {number} y CSS pixels @param {Scene} scene */
  moveBy(x, y, scene) {
    const map = this.mapping(scene);
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    this.host.move(this.plane, (-x * ratio) / map.scaleX, (-y * ratio) / map.scaleY);
  }

  /** @param {PointerEvent} event */
  onUp(event) {
    if (this.drag?.kind === "measure") this.measureTo(event, true);
    this.fingers.delete(event.pointerId);
    if (!this.fingers.size) this.drag = null;
  }

  /** @param {PointerEvent} event */
  pointAt(event) {
    const voxel = this.voxelAt(event);
    if (voxel) this.host.point(voxel);
  }

  /** @param {PointerEvent} event @param {boolean} isDone */
  measureTo(event, isDone) {
    const to = this.voxelAt(event, false);
    if (this.drag?.from && to) this.host.measure(this.plane, this.drag.from, to, isDone);
  }
}

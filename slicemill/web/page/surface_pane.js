// @ts-check
/** The pane with the surfaces of the labels: it is turned by hand, and a click moves the crosshair to the surface. */

import { getSurface } from "./api.js";
import { fingerDistance, makePane, wheelDistance } from "./dom.js";
import { toMm, toVoxelOf } from "./geometry.js";
import { boxOf, paintSurfaces, project, turnedAxes, unproject } from "./surface.js";

/** @typedef {import("./geometry.js").Voxel} Voxel */
/** @typedef {import("./geometry.js").Triple} Triple */
/** @typedef {import("./labels.js").ShownLabel} ShownLabel */
/** @typedef {import("./surface.js").Mesh} Mesh */
/** @typedef {{activate: () => void, point: (voxel: Voxel) => void, redraw: () => void}} SurfaceHost */
/**
 * @typedef {object} SurfaceScene
 * @property {import("./api.js").CaseInfo} info
 * @property {ShownLabel[]} labels
 * @property {Voxel} cursor
 * @property {boolean} crosshair
 * @property {boolean} isReading whether a mask is still read
 */

const MOST_PIXELS = 700;
/** Pixels along the longer side of the picture; more are slower and show no more. */
const FIT = 0.37;
/** Half of the longest side of the surfaces' box, in parts of the picture's shorter side. */
const RADIANS_PX = 0.01;
const KEY_RADIANS = Math.PI / 12;
const CLICK_PX = 4;
/** Movement below which a press is a click, CSS pixels. */
const ZOOMS = { least: 0.5, most: 12 };
/** @type {[string, string, number, number][]} Letter, word, axis, side. */
const SIDES = [
  ["R", "right", 0, -1],
  ["L", "left", 0, 1],
  ["A", "front", 1, -1],
  ["P", "back", 1, 1],
  ["F", "feet", 2, -1],
  ["H", "head", 2, 1],
];

export class SurfacePane {
  /** @param {SurfaceHost} host */
  constructor(host) {
    this.host = host;
    const parts = makePane("surface", "3-D picture; arrow keys turn it");
    this.element = parts.element;
    this.canvas = parts.canvas;
    this.marks = parts.marks;
    this.caption = parts.caption;
    this.waiting = parts.waiting;
    this.element.hidden = true;
    this.number = -1;
    /** @type {Map<string, Mesh | string | null>} By mask and value: a surface, why there is none, or null for soon. */
    this.meshes = new Map();
    /** @type {SurfaceScene | null} */
    this.scene = null;
    /** @type {{depth: Float32Array, camera: import("./surface.js").Camera, key: unknown[]} | null} */
    this.painted = null;
    this.turn = 0;
    this.tilt = 0;
    this.zoom = 1;
    /** @type {Map<number, {x: number, y: number}>} */
    this.fingers = new Map();
    this.moved = 0;
    new ResizeObserver(() => {
      this.painted = null;
      this.host.redraw();
    }).observe(this.element);
    this.listen();
  }

  /** Forget the surfaces, for another case. @param {number} number @param {boolean} hasMasks */
  open(number, hasMasks) {
    this.number = number;
    this.meshes = new Map();
    this.painted = null;
    this.scene = null;
    this.element.hidden = !hasMasks;
    this.resetView();
  }

  resetView() {
    this.turn = 0;
    this.tilt = 0;
    this.zoom = 1;
  }

  /** Load the surfaces of labels whose masks were read. @param {ShownLabel[]} labels
   * @param {(import("./api.js").VolumeProgress | null)[]} masks */
  load(labels, masks) {
    const { number } = this;
    for (const { mask, value } of labels) {
      const key = `${mask}/${value}`;
      if (!masks[mask]?.is_complete || this.meshes.has(key)) continue;
      this.meshes.set(key, null);
      const keep = (/** @type {Mesh | string} */ result) => {
        if (number !== this.number) return;
        this.meshes.set(key, result);
        this.host.redraw();
      };
      getSurface(number, mask, value).then(keep, (error) => keep(error.message));
    }
  }

  /** Return the surfaces to draw; one that has others inside is clear. @param {ShownLabel[]} labels */
  bodies(labels) {
    const shown = labels.flatMap((label) => {
      const mesh = this.meshes.get(`${label.mask}/${label.value}`);
      return label.isShown && mesh && typeof mesh !== "string" && mesh.triangles.length ? [{ ...label, mesh }] : [];
    });
    return shown.map((body) => ({
      ...body,
      isClear: shown.some(
        (other) =>
          other !== body &&
          other.mask === body.mask &&
          other.region.length < body.region.length &&
          other.region.every((value) => body.region.includes(value)),
      ),
    }));
  }

  /** @param {SurfaceScene} scene */
  draw(scene) {
    this.scene = scene;
    const bodies = this.bodies(scene.labels);
    const results = [...this.meshes.values()];
    const failure = results.find((one) => typeof one === "string");
    const isLoading = scene.isReading || results.includes(null);
    this.waiting.textContent = bodies.length ? "" : isLoading ? "Reading …" : failure || "Nothing to show";
    const box = this.element.getBoundingClientRect();
    const ratio = Math.min(devicePixelRatio, MOST_PIXELS / Math.max(box.width, box.height));
    const width = Math.max(1, Math.round(box.width * ratio));
    const height = Math.max(1, Math.round(box.height * ratio));
    const { middle, half } = boxOf(bodies.map((one) => one.mesh));
    const camera = {
      axes: turnedAxes(this.turn, this.tilt),
      middle: bodies.length ? middle : /** @type {Triple} */ ([0, 0, 0]),
      scale: (FIT * this.zoom * Math.min(width, height)) / Math.max(1, ...half),
    };
    this.paint(bodies, camera, width, height);
    this.drawMarks(scene, camera, bodies.length ? half : null, box);
    this.describe(bodies, camera);
  }

  /** @param {ReturnType<SurfacePane["bodies"]>} bodies @param {import("./surface.js").Camera} camera
   * @param {number} width @param {number} height */
  paint(bodies, camera, width, height) {
    const look = bodies.flatMap((one) => [one.mesh, one.isClear]);
    const key = [width, height, this.turn, this.tilt, this.zoom, ...look];
    const { painted } = this;
    if (painted && painted.key.length === key.length && key.every((part, index) => part === painted.key[index])) return;
    this.canvas.width = width;
    this.canvas.height = height;
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    if (!context) return;
    const pixels = context.createImageData(width, height);
    const depth = paintSurfaces(bodies, camera, width, height, new Uint32Array(pixels.data.buffer));
    context.putImageData(pixels, 0, 0);
    this.painted = { depth, camera, key };
  }

  /** Draw the crosshair and the letters of the sides. @param {SurfaceScene} scene
   * @param {import("./surface.js").Camera} camera @param {Triple | null} half @param {DOMRect} box */
  drawMarks({ info, cursor, crosshair }, camera, half, box) {
    const { marks } = this;
    [marks.width, marks.height] = [this.canvas.width, this.canvas.height];
    const context = marks.getContext("2d");
    if (!context || !half) return;
    const ratio = marks.width / box.width;
    const at = (/** @type {Triple} */ mm) => project(camera, mm, marks.width, marks.height);
    if (crosshair) {
      const [x, y] = at(toMm(info.affine_lps, cursor));
      context.strokeStyle = "rgba(120, 220, 140, 0.9)";
      context.lineWidth = 1.5 * ratio;
      context.strokeRect(x - 5 * ratio, y - 5 * ratio, 10 * ratio, 10 * ratio);
    }
    context.font = `${14 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [letter, , axis, side] of SIDES) {
      if (Math.abs(camera.axes.near[axis]) > 0.9) continue; // it would hide the surfaces
      const mm = /** @type {Triple} */ ([...camera.middle]);
      mm[axis] += side * (half[axis] + (14 * ratio) / camera.scale);
      const [x, y, depth] = at(mm);
      context.fillStyle = depth < -1 ? "rgba(255, 233, 168, 0.5)" : "#ffe9a8";
      context.fillText(letter, x, y);
    }
  }

  /** @param {ReturnType<SurfacePane["bodies"]>} bodies @param {import("./surface.js").Camera} camera */
  describe(bodies, { axes }) {
    const towards = SIDES.map(([, , axis, side]) => side * axes.near[axis]);
    const text = `3-D from the ${SIDES[towards.indexOf(Math.max(...towards))][1]}`;
    this.caption.textContent = text;
    const names = bodies.map((one) => one.shownName).join(", ");
    this.canvas.setAttribute("aria-label", names ? `${text}: ${names}` : text);
  }

  listen() {
    const { element } = this;
    element.addEventListener("focus", () => this.host.activate());
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("keydown", (event) => this.onKey(event));
    element.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.turnBy(0, 0, Math.exp(-wheelDistance(event) / 300));
      },
      { passive: false },
    );
    element.addEventListener("pointerdown", (event) => {
      element.focus({ preventScroll: true });
      element.setPointerCapture(event.pointerId);
      if (!this.fingers.size) this.moved = 0;
      this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    element.addEventListener("pointermove", (event) => this.onMove(event));
    element.addEventListener("pointerup", (event) => {
      if (this.fingers.delete(event.pointerId) && !this.fingers.size && this.moved < CLICK_PX) this.onClick(event);
    });
    element.addEventListener("pointercancel", (event) => this.fingers.delete(event.pointerId));
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const steps = /** @type {Record<string, [number, number, number]>} */ ({
      ArrowLeft: [-KEY_RADIANS, 0, 1],
      ArrowRight: [KEY_RADIANS, 0, 1],
      ArrowUp: [0, KEY_RADIANS, 1],
      ArrowDown: [0, -KEY_RADIANS, 1],
      "+": [0, 0, 1.25],
      "=": [0, 0, 1.25],
      "-": [0, 0, 0.8],
    });
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere these keys change the slice
    this.turnBy(...step);
  }

  /** @param {number} turn @param {number} tilt radians @param {number} zoom factor */
  turnBy(turn, tilt, zoom) {
    this.turn += turn;
    this.tilt = Math.min(Math.PI / 2, Math.max(-Math.PI / 2, this.tilt + tilt));
    this.zoom = Math.min(ZOOMS.most, Math.max(ZOOMS.least, this.zoom * zoom));
    this.host.redraw();
  }

  /** @param {PointerEvent} event */
  onMove(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const distance = fingerDistance(this.fingers.values());
    this.fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const [x, y] = [event.clientX - before.x, event.clientY - before.y];
    this.moved += Math.hypot(x, y);
    if (this.fingers.size > 1) this.turnBy(0, 0, fingerDistance(this.fingers.values()) / distance);
    else this.turnBy(-x * RADIANS_PX, y * RADIANS_PX, 1);
  }

  /** Move the crosshair to the surface under the pointer. @param {PointerEvent} event */
  onClick(event) {
    if (!this.painted || !this.scene) return;
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.canvas;
    const x = Math.floor(((event.clientX - box.left) * width) / box.width);
    const y = Math.floor(((event.clientY - box.top) * height) / box.height);
    const depth = this.painted.depth[y * width + x];
    if (!(depth > -Infinity)) return;
    const mm = unproject(this.painted.camera, x + 0.5, y + 0.5, depth, width, height);
    this.host.point(toVoxelOf(this.scene.info.affine_lps, mm));
  }
}

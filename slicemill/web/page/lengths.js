// @ts-check
/** Lengths that a person measures, in mm between positions of voxels. */

import { byId, fillList } from "./dom.js";
import { AXES, distanceMm } from "./geometry.js";

/** @typedef {import("./geometry.js").Plane} Plane */
/** @typedef {import("./geometry.js").Voxel} Voxel */
/** @typedef {{plane: Plane, from: Voxel, to: Voxel, mm: number}} Length */

export class Lengths {
  constructor() {
    /** @type {Length[]} */
    this.done = [];
    /** @type {Length | null} The length that is being drawn. */
    this.drawn = null;
    /** @type {{plane: Plane, voxel: Voxel} | null} The end that was set with a key. */
    this.first = null;
  }

  get shown() {
    return this.drawn ? [...this.done, this.drawn] : this.done;
  }

  /** Add a length, or show it while it is drawn. @param {Plane} plane @param {Voxel} from @param {Voxel} to
   * @param {number[][]} affine @param {boolean} isDone */
  add(plane, from, to, affine, isDone) {
    const length = { plane, from, to, mm: distanceMm(affine, from, to) };
    this.drawn = isDone ? null : length;
    if (isDone && length.mm > 0) this.done.push(length);
    this.list();
  }

  /** Set an end at a voxel: the first, or the second, if it is in the same section as the first.
   * @param {Plane} plane @param {Voxel} voxel @param {number[][]} affine */
  placeEnd(plane, voxel, affine) {
    const { first } = this;
    const { across } = AXES[plane];
    if (first && first.plane === plane && first.voxel[across] === voxel[across]) {
      this.first = null;
      this.add(plane, first.voxel, voxel, affine, true);
    } else {
      this.first = { plane, voxel };
      byId("live", HTMLElement).textContent = "First end set. Move the crosshair, then press Enter.";
    }
  }

  forgetFirst() {
    this.first = null;
  }

  clear() {
    this.done = [];
    this.drawn = null;
    this.first = null;
    this.list();
  }

  list() {
    byId("lengths-box", HTMLElement).hidden = !this.done.length;
    fillList(
      byId("lengths", HTMLElement),
      this.done.map(({ plane, from, mm }) => `${mm.toFixed(1)} mm, ${plane} ${from[AXES[plane].across] + 1}`),
    );
  }
}

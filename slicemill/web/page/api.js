// @ts-check
/** Requests to the server that this page came from. */

import { PLANES } from "./geometry.js";
import { readMesh } from "./surface.js";

/** @typedef {import("./geometry.js").Plane} Plane */
/** @typedef {{image: Int16Array, masks: (Uint8Array | null)[]}} Section HU, and values of each mask. */
/** @typedef {{value: number, name: string, color: number[], region: number[]}} Label */
/** @typedef {{name: string, labels: Label[], tumor: number | null, threshold?: number | null,
 *   failure: string | null}} Mask */
/** @typedef {{name: string, shape: [number, number, number], spacing_mm: [number, number, number],
 *   affine_lps: number[][], masks: Mask[]}} CaseInfo */
/** @typedef {{slices: number, first_slice: number | null, is_complete: boolean, failure: string | null,
 *   values: [number, number][], preliminary: number[]}} VolumeProgress */
/** @typedef {{image: VolumeProgress, masks: (VolumeProgress | null)[], warnings: string[]}} Progress */
/** @typedef {{name: string, dice: number | null, mark: string | null}} Entry */
/** @typedef {{cases: Entry[], dice_of: string | null, marks: string[], version: string}} CaseList */
/** @typedef {{id: number, voxels: number, volume_ml: number, centroid_lps_mm: number[], bbox_zyx: number[],
 *   key_z: number, max_axial_diameter_mm: number}} Part */
/** @typedef {{count: number, parts: Part[], mean_hu: number[] | null, volume_ml: number,
 *   slice_voxels: number[]}} Parts */

const KEPT = 96;
/** Sections that are kept. */

export class RequestError extends Error {
  /** @param {number} status @param {string} reason */
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

/** @param {string} path @param {RequestInit} [options] */
export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new RequestError(0, "slicemill does not answer. Was it ended in the terminal?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    throw new RequestError(response.status, String(answer.error));
  }
  return response;
}

/** Trade the token behind the # for a cookie, and drop it from the address. */
export async function startSession() {
  const token = location.hash.slice(1);
  if (token) {
    await request("/session", { method: "POST", body: token });
    history.replaceState(null, "", "/");
  }
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
async function getJson(path, signal) {
  return (await request(path, { signal })).json();
}

/** @returns {Promise<CaseList>} */
export const getCases = () => getJson("/api/cases");
/** @param {number} number @returns {Promise<CaseInfo>} */
export const getCase = (number) => getJson(`/api/cases/${number}`);
/** @param {number} number @returns {Promise<Progress>} */
export const getProgress = (number) => getJson(`/api/cases/${number}/progress`);
/** @param {number} number @param {number} mask @param {number} value @returns {Promise<Parts>} */
export const getParts = (number, mask, value) => getJson(`/api/cases/${number}/parts/${mask}/${value}`);
/** @param {number} number @param {number} mask @param {number} value */
export const getSurface = async (number, mask, value) =>
  readMesh(await (await request(`/api/cases/${number}/surface/${mask}/${value}`)).arrayBuffer());
/** @param {number} number @param {string | null} mark */
export const putMark = (number, mark) =>
  request(`/api/cases/${number}/mark`, { method: "PUT", body: JSON.stringify(mark) });

/** The sections of a case: those looked at last are kept, and those that are no longer wanted are not waited for. */
export class Sections {
  /** @param {number} number @param {number} masks */
  constructor(number, masks) {
    this.number = number;
    this.masks = masks;
    /** @type {(VolumeProgress | null)[]} How much of each mask can be fetched. */
    this.progress = [];
    /** @type {Map<string, Section>} */
    this.kept = new Map();
    /** @type {Map<string, {controller: AbortController, promise: Promise<Section>}>} */
    this.loading = new Map();
  }

  /** @param {Plane} plane @param {number} index */
  get(plane, index) {
    const key = `${plane}/${index}`;
    const section = this.kept.get(key);
    if (section) {
      this.kept.delete(key);
      this.kept.set(key, section);
    }
    return section;
  }

  /** Stop loading the sections of a plane that are not wanted.
   * @param {Plane} plane @param {number[]} wanted */
  keepOnly(plane, wanted) {
    const keys = new Set(wanted.map((index) => `${plane}/${index}`));
    for (const [key, { controller }] of this.loading) {
      if (key.startsWith(plane) && !keys.has(key)) {
        controller.abort();
        this.loading.delete(key);
      }
    }
  }

  /** Note what can be fetched now. When a mask is complete or fails, its preliminary slices are forgotten.
   * @param {(VolumeProgress | null)[]} progress */
  setProgress(progress) {
    const state = (/** @type {VolumeProgress | null | undefined} */ one) => one?.failure ?? one?.is_complete;
    const isChanged = progress.some((one, mask) => state(one) !== state(this.progress[mask]));
    this.progress = progress;
    if (!isChanged) return;
    this.stop();
    this.kept.clear();
  }

  /** Whether a mask can be fetched: all of it, or an axial slice that is preliminary.
   * @param {number} mask @param {Plane} plane @param {number} index */
  canRead(mask, plane, index) {
    const one = this.progress[mask];
    if (!one || one.failure) return false;
    return one.is_complete || (plane === "axial" && one.preliminary.includes(index));
  }

  /** Whether a section is kept with all masks that can be fetched. @param {Plane} plane @param {number} index */
  isCurrent(plane, index) {
    const masks = this.get(plane, index)?.masks;
    return Boolean(masks?.every((values, mask) => values || !this.canRead(mask, plane, index)));
  }

  stop() {
    for (const plane of PLANES) this.keepOnly(plane, []);
  }

  /** @param {Plane} plane @param {number} index @returns {Promise<Section>} */
  load(plane, index) {
    const key = `${plane}/${index}`;
    const kept = this.get(plane, index);
    if (kept && this.isCurrent(plane, index)) return Promise.resolve(kept);
    const known = this.loading.get(key);
    if (known) return known.promise;
    const controller = new AbortController();
    const promise = this.fetch(plane, index, controller.signal).then((section) => {
      if (this.loading.get(key)?.controller === controller) this.loading.delete(key);
      this.kept.set(key, section);
      for (const oldest of this.kept.keys()) {
        if (this.kept.size <= KEPT) break;
        this.kept.delete(oldest);
      }
      return section;
    });
    promise.catch(() => {
      if (this.loading.get(key)?.controller === controller) this.loading.delete(key);
    });
    this.loading.set(key, { controller, promise });
    return promise;
  }

  /** @param {Plane} plane @param {number} index @param {AbortSignal} signal @returns {Promise<Section>} */
  async fetch(plane, index, signal) {
    const base = `/api/cases/${this.number}`;
    const bytes = async (/** @type {string} */ path) => (await request(path, { signal })).arrayBuffer();
    const masks = Array.from({ length: this.masks }, (_, mask) =>
      this.canRead(mask, plane, index) ? bytes(`${base}/mask/${mask}/${plane}/${index}`) : null,
    );
    const [image, ...values] = await Promise.all([bytes(`${base}/image/${plane}/${index}`), ...masks]);
    return {
      image: new Int16Array(/** @type {ArrayBuffer} */ (image)),
      masks: values.map((buffer) => (buffer ? new Uint8Array(buffer) : null)),
    };
  }
}

// @ts-check
/** Requests about uploads and their results. */

import { request } from "./api.js";

/** @typedef {{name: string, detail: string, refused: string | null}} Choice */
/** @typedef {{name: string, bytes: number, text: string}} ResultFile */
/** @typedef {{kind: "found" | "none" | "volumes", headline: string, details: string[]}} Answer */
/** @typedef {{name: string, seconds: number, is_over: boolean}} Step */
/** @typedef {"uploading" | "reading" | "choosing" | "waiting" | "segmenting" | "writing" | "done" | "failed"} Status */
/** @typedef {{id: number, revision: number, name: string, status: Status, model: number, steps: Step[],
 *   upload_bytes: number, upload_files: number, slices: number, slices_read: number, share: number,
 *   slices_per_second: number | null, ahead: number, has_case: boolean, choices: Choice[], answer: Answer | null,
 *   failure: string | null, files: ResultFile[], missing: string[], threshold_note: string,
 *   has_pixel_size: boolean}} Job */
/** @typedef {{name: string, labels: Record<string, number>, tumor: string | null, size: [number, number],
 *   context: number, spacing_mm: number | null, license: string | null, training: Record<string, any> | null,
 *   gives_probability: boolean, provider: string}} Model */
/** @typedef {{file_bytes: number, files: number, slices: number, voxels: number, jobs: number,
 *   idle_minutes: number}} Limits */
/** @typedef {{version: string, limits: Limits, models: Model[] | null, failure: string | null, suffixes: string[],
 *   jobs: Job[]}} Server */
/** @typedef {{low: number, high: number, left: number, top: number, right: number, bottom: number,
 *   pixel_mm: number | null}} PictureRequest */

const AT_ONCE = 4;
/** Files that are sent at a time. */

/** @returns {Promise<Server>} */
export async function getServer() {
  return (await request("/api/server")).json();
}

/** @returns {Promise<number>} */
export async function createJob() {
  return (await (await request("/api/jobs", { method: "POST" })).json()).id;
}

/** Send files; each is the body of a request, and its name is only shown. @param {number} job
 * @param {{file: File, name: string}[]} files @param {AbortSignal} signal */
export async function sendFiles(job, files, signal) {
  const left = [...files];
  const send = async () => {
    for (let next = left.shift(); next; next = left.shift()) {
      const path = `/api/jobs/${job}/files?name=${encodeURIComponent(next.name.slice(-300))}`;
      await request(path, { method: "PUT", body: next.file, signal });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, send));
}

/** @param {number} job @param {number} model @param {PictureRequest | null} picture */
export const startJob = (job, model, picture) => post(`/api/jobs/${job}/start`, { model, picture });
/** @param {number} job @param {number} index */
export const chooseScan = (job, index) => post(`/api/jobs/${job}/choose`, { index });
/** @param {number} job */
export const endJob = (job) => post(`/api/jobs/${job}/end`, {});

/** @param {string} path @param {object} body */
const post = (path, body) => request(path, { method: "POST", body: JSON.stringify(body) });

/** Call a function with each new state of a job, until it has ended. The browser resumes a stream that broke.
 * @param {number} job @param {(state: Job) => void} onState @returns {() => void} which stops it */
export function followJob(job, onState) {
  const source = new EventSource(`/api/jobs/${job}/events`);
  source.addEventListener("message", (event) => {
    /** @type {Job} */
    const state = JSON.parse(event.data);
    if (state.status === "done" || state.status === "failed") source.close();
    onState(state);
  });
  source.addEventListener("ended", () => source.close());
  return () => source.close();
}

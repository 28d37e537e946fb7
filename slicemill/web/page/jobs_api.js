// @ts-check
/** Requests about uploads and their results. */

import { request, RequestError } from "./api.js";
import { clean } from "./dom.js";

/** @typedef {{name: string, detail: string, refused: string | null}} Choice */
/** @typedef {{name: string, bytes: number, text: string}} ResultFile */
/** @typedef {{kind: "found" | "none" | "volumes", headline: string, details: string[]}} Answer */
/** @typedef {{name: string, seconds: number, is_over: boolean}} Step */
/** @typedef {"uploading" | "reading" | "choosing" | "waiting" | "segmenting" | "writing" | "done" | "failed"} Status */
/** @typedef {{id: number, revision: number, name: string, status: Status, model: number, steps: Step[],
 *   upload_bytes: number, upload_files: number, slices: number, slices_read: number, share: number,
 *   slices_per_second: number | null, ahead: number, has_case: boolean, choices: Choice[],
 *   thumbnails: number[], answer: Answer | null, failure: string | null, files: ResultFile[], missing: string[],
 *   threshold_note: string, has_pixel_size: boolean}} Job */
/** @typedef {{name: string, labels: Record<string, number>, tumor: string | null, size: [number, number],
 *   context: number, spacing_mm: number | null, license: string | null, training: Record<string, any> | null,
 *   trained_on: string | null, gives_probability: boolean, provider: string, judges_candidates: boolean}} Model */
/** @typedef {{file_bytes: number, files: number, slices: number, voxels: number, jobs: number,
 *   idle_minutes: number}} Limits */
/** @typedef {{version: string, limits: Limits, models: Model[] | null, failure: string | null, suffixes: string[],
 *   jobs: Job[]}} Server */
/** @typedef {{low: number, high: number, left: number, top: number, right: number, bottom: number,
 *   pixel_mm: number | null}} PictureRequest */

const AT_ONCE = 4;
/** Files that are sent at a time. */
const RETRIES = 10;
const RETRY_MS = 1000;

/** @returns {Promise<Server>} */
export async function getServer() {
  return (await request("/api/server")).json();
}

/** Return the gray values of the picture of a choice. @param {number} job @param {number} index */
export async function getThumbnail(job, index) {
  return new Uint8Array(await (await request(`/api/jobs/${job}/choices/${index}`)).arrayBuffer());
}

/** @param {number} bytes of all files @returns {Promise<number>} */
export async function createJob(bytes) {
  return (await (await request(`/api/jobs?bytes=${bytes}`, { method: "POST" })).json()).id;
}

/** Send files; each is the body of a request, and its name is only shown. @param {number} job
 * @param {{file: File, name: string}[]} files @param {AbortSignal} signal
 * @param {(text: string) => void} onMessage says that the connection was lost; "" when it is back */
export async function sendFiles(job, files, signal, onMessage) {
  const left = [...files.entries()];
  /** @type {Set<number>} Files whose connection is lost. */
  const lost = new Set();
  /** @param {number} number @param {boolean} isLost */
  const onLost = (number, isLost) => {
    if (signal.aborted) return;
    if (isLost) lost.add(number);
    else lost.delete(number);
    onMessage(lost.size ? "The connection was lost; trying again" : "");
  };
  const send = async () => {
    for (let next = left.shift(); next; next = left.shift()) await sendFile(job, next[0], next[1], signal, onLost);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, send));
}

/** Send a file; after a lost connection, what has not arrived of it. @param {number} job @param {number} number
 * @param {{file: File, name: string}} named @param {AbortSignal} signal
 * @param {(number: number, isLost: boolean) => void} onLost */
async function sendFile(job, number, { file, name }, signal, onLost) {
  const path = `/api/jobs/${job}/files`;
  for (let offset = 0, most = 0, tries = 0; ; tries++) {
    const words = `name=${encodeURIComponent(name.slice(-300))}&number=${number}&offset=${offset}`;
    try {
      await request(`${path}?${words}`, { method: "PUT", body: file.slice(offset), signal });
      return;
    } catch (error) {
      const isLost = error instanceof RequestError && (error.status === 0 || error.status === 409);
      if (!isLost || tries === RETRIES) throw error;
      if (error.status === 0) await checkReadable(file, name, offset); // a browser does not say which of them failed
    }
    onLost(number, true);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    const answer = await request(`${path}/${number}`, { signal }).catch(() => null);
    const arrived = answer && (await answer.json());
    if (answer) onLost(number, false);
    if (arrived?.is_complete) return;
    offset = arrived?.bytes ?? 0;
    if (offset > most) tries = 0; // more has arrived than before
    most = Math.max(most, offset);
  }
}

/** Throw if a file cannot be read from a byte on. @param {File} file @param {string} name @param {number} offset */
async function checkReadable(file, name, offset) {
  try {
    await file.slice(offset, offset + 1).arrayBuffer();
  } catch {
    throw new Error(`${clean(name)} cannot be read. Was it changed, moved or removed? Choose it again.`);
  }
}

/** @param {number} job @param {number} model @param {PictureRequest | null} picture @param {boolean} is_example */
export const startJob = (job, model, picture, is_example) =>
  post(`/api/jobs/${job}/start`, { model, picture, is_example });
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

// @ts-check
/** Candidates of nodules and their threshold: the same in the page of a scan and in the page of `slicemill serve`. */

import { counted } from "./dom.js";

/** @typedef {{rate: number, threshold: number, sensitivity?: number | null}} Rate */
/**
 * @typedef {object} Candidate What slicemill/infer/candidates/records.py writes.
 * @property {number} number
 * @property {number} x_mm
 * @property {number} y_mm
 * @property {number} z_mm
 * @property {number} probability
 * @property {number} diameter_mm
 * @property {number} volume_ml
 * @property {number} slice from 0
 * @property {number} peak
 * @property {number | null} malignancy
 */

/** Return the candidates that count. @param {Candidate[]} candidates @param {number} threshold */
export function listAbove(candidates, threshold) {
  return candidates.filter(({ probability }) => probability >= threshold);
}

/** Return the threshold at which a page opens: the lowest that was chosen, else one that leaves out none.
 * @param {Rate[]} rates */
export const firstThreshold = (rates) => (rates.length ? Math.min(...rates.map(({ threshold }) => threshold)) : 0);

/** Return what is known of false marks at a threshold: each chosen one is the lowest with at most so many.
 * @param {Rate[]} rates @param {number} threshold */
export function describeRate(rates, threshold) {
  if (!rates.length) return "false marks a scan: unknown, as no threshold was chosen with slicemill tune";
  const most = Math.min(...rates.filter((one) => one.threshold <= threshold).map(({ rate }) => rate));
  const least = Math.max(...rates.filter((one) => one.threshold > threshold).map(({ rate }) => rate));
  const marks = (/** @type {number} */ rate) => `${rate} false mark${rate === 1 ? "" : "s"} a scan`;
  const isChosen = rates.some((one) => one.threshold === threshold);
  if (!Number.isFinite(most)) return `more than about ${marks(least)}`;
  if (isChosen || !Number.isFinite(least)) return `about ${marks(most)} or fewer`;
  return `about ${Math.min(least, most)} to ${marks(Math.max(least, most))}`;
}

/** Return what is known of the nodules found at a threshold: a lower one finds no fewer.
 * @param {Rate[]} rates @param {number} threshold */
export function describeFound(rates, threshold) {
  const known = rates.flatMap((one) => (typeof one.sensitivity === "number" ? [{ ...one, s: one.sensitivity }] : []));
  const least = Math.max(...known.filter((one) => one.threshold >= threshold).map(({ s }) => s));
  const most = Math.min(...known.filter((one) => one.threshold <= threshold).map(({ s }) => s));
  if (!known.length) return "";
  const down = format(Math.floor(100 * least + 1e-9) / 100, 2); // 1.00 is all of them
  const up = format(Math.ceil(100 * most - 1e-9) / 100, 2);
  const share = least === most ? down : Number.isFinite(least) ? `at least ${down}` : `at most ${up}`;
  return `, ${share} of nodules found on the tuning cases`;
}

/** Return a line about a threshold. @param {Candidate[]} candidates @param {Rate[]} rates @param {number} threshold */
export function describeThreshold(candidates, rates, threshold) {
  const above = listAbove(candidates, threshold).length;
  const all = counted(candidates.length, "candidate");
  const expected = describeRate(rates, threshold) + describeFound(rates, threshold);
  return `${above} of ${all} at ${format(threshold, 3)} or above; ${expected}`;
}

/** @param {number} value @param {number} digits */
export const format = (value, digits) => value.toFixed(digits);

/** Return a candidate as a line. @param {Candidate} one */
export function describeCandidate(one) {
  const malignancy = one.malignancy === null ? "" : `, malignancy ${format(one.malignancy, 2)}`;
  return (
    `probability ${format(one.probability, 3)}${malignancy}, ${format(one.diameter_mm, 1)} mm, ` +
    `${format(one.volume_ml, 2)} ml, slice ${one.slice + 1}`
  );
}

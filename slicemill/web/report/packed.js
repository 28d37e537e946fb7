// @ts-check
/** What a page holds as base64 of gzip. */

/** Return the bytes. @param {string} data @returns {Promise<ArrayBuffer>} */
export function unpackBytes(data) {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** Return int16 HU of gray values. @param {Uint8Array} grays @param {{low_hu: number, step_hu: number}} range */
export function toHu(grays, { low_hu, step_hu }) {
  return Int16Array.from(grays, (gray) => low_hu + step_hu * gray);
}

/** Return the HU of the brightest gray value; brighter voxels have it, too.
 * @param {{low_hu: number, step_hu: number}} range */
export function highestHu({ low_hu, step_hu }) {
  return low_hu + 255 * step_hu;
}

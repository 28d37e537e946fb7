// @ts-check
/** The bar along the slices: how much of a label each slice has, and where its largest parts are. */

/** Draw the bar: each column shows the largest count of its slices. The left end is slice 1, the lowest.
 * @param {HTMLCanvasElement} canvas @param {number[]} counts voxels by slice @param {number[]} color
 * @param {number} shown index of the slice that is shown */
export function drawHeat(canvas, counts, color, shown) {
  const width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  const height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  if (!context || !counts.length) return;
  const most = Math.max(...counts);
  context.fillStyle = `rgb(${color.join(" ")})`;
  for (let x = 0; x < width; x++) {
    const [start, stop] = [x, x + 1].map((edge) => (edge * counts.length) / width);
    const part = counts.slice(Math.floor(start), Math.max(Math.ceil(stop), Math.floor(start) + 1));
    const highest = Math.max(...part);
    if (highest > 0) {
      const tall = Math.max(2 * devicePixelRatio, (highest / most) * height);
      context.fillRect(x, height - tall, 1, tall);
    }
  }
  context.fillStyle = getComputedStyle(canvas).color;
  const x = ((shown + 0.5) / counts.length) * width;
  context.fillRect(Math.round(x - devicePixelRatio / 2), 0, Math.max(1, Math.round(devicePixelRatio)), height);
}

/** Return the slice under a position along the bar. @param {number} fraction 0 to 1 @param {number} slices */
export function sliceAt(fraction, slices) {
  return Math.min(slices - 1, Math.max(0, Math.floor(fraction * slices)));
}

/** Describe the bar in words. @param {number[]} counts @param {string} name */
export function describeHeat(counts, name) {
  const filled = counts.filter((count) => count > 0).length;
  if (!filled) return `No slice has ${name}`;
  const largest = counts.indexOf(Math.max(...counts));
  return `${name} in ${filled} of ${counts.length} slices, most in slice ${largest + 1}`;
}

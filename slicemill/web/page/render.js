// @ts-check
/** Pixels of a section: gray values by a table, outlines along voxel edges. Pure functions, compared with numpy. */

import { sample } from "./geometry.js";

/**
 * @typedef {object} Overlay A mask as it is drawn.
 * @property {Uint8Array} values label values of the section
 * @property {Uint8Array} owner for each value the number of the label that shows it, 0 for none
 * @property {LabelStyle[]} styles by number of the label - 1
 */
/**
 * @typedef {object} LabelStyle
 * @property {Uint8Array} inside for each value 1 if it is inside of the label's outline
 * @property {number[]} color red, green, blue
 * @property {number[]} pattern lengths of dash and gap, in widths of the outline; empty for a solid line
 */
/**
 * @typedef {object} Style
 * @property {boolean} outline
 * @property {boolean} fill
 * @property {number} width of an outline, device pixels
 */

const BLACK = 0xff000000;
const FILL = 90;
/** Opacity of a filled label, of 256. */

/** Return uint8[65536]: the gray value of each HU + 32768, with the same roundings as slicemill's other pictures.
 * @param {number} low @param {number} high */
export function windowTable(low, high) {
  const table = new Uint8Array(65536);
  const [first, range] = [Math.fround(low), Math.fround(high - low)];
  for (let index = 0; index < table.length; index++) {
    const hu = Math.min(Math.max(index - 32768, low), high);
    table[index] = Math.fround(Math.fround(Math.fround(Math.fround(hu) - first) / range) * 255);
  }
  return table;
}

/** Paint a section: uint32[height * width], red in the lowest byte.
 * @param {{image: Int16Array, columns: number, rows: number}} section
 * @param {import("./geometry.js").Mapping} mapping
 * @param {Uint8Array} table @param {Overlay[]} overlays @param {Style} style
 * @param {number} width @param {number} height @param {Uint32Array} pixels */
export function paint(section, mapping, table, overlays, style, width, height, pixels) {
  const columns = sample(width, mapping.originX, mapping.scaleX, section.columns);
  const rows = sample(height, mapping.originY, mapping.scaleY, section.rows);
  paintGray(section, columns, rows, table, pixels);
  for (const overlay of overlays) {
    paintMask(overlay, section.columns, columns, rows, style, pixels);
  }
}

/** @param {{image: Int16Array, columns: number}} section @param {Int32Array} columns @param {Int32Array} rows
 * @param {Uint8Array} table @param {Uint32Array} pixels */
function paintGray({ image, columns: stride }, columns, rows, table, pixels) {
  const width = columns.length;
  const pixelOf = firstPixels(columns, stride);
  pixels.fill(BLACK);
  for (let y = 0; y < rows.length; y++) {
    const start = y * width;
    if (rows[y] < 0) continue;
    if (y > 0 && rows[y] === rows[y - 1]) {
      pixels.copyWithin(start, start - width, start);
      continue;
    }
    const row = rows[y] * stride;
    for (let x = pixelOf[0]; x < pixelOf[stride]; x++) {
      pixels[start + x] = (table[image[row + columns[x]] + 32768] * 0x010101) | BLACK;
    }
  }
}

/** @param {Overlay} overlay @param {number} stride @param {Int32Array} columns @param {Int32Array} rows
 * @param {Style} style @param {Uint32Array} pixels */
function paintMask({ values, owner, styles }, stride, columns, rows, style, pixels) {
  const width = columns.length;
  const pixelOf = firstPixels(columns, stride);
  for (let y = 0; y < rows.length; y++) {
    if (rows[y] < 0) continue;
    const row = rows[y] * stride;
    let [first, end] = [0, stride];
    while (first < end && !owner[values[row + first]]) first++;
    while (first < end && !owner[values[row + end - 1]]) end--;
    for (let x = pixelOf[first]; x < pixelOf[end]; x++) {
      const label = owner[values[row + columns[x]]];
      if (!label) continue;
      const { inside, color, pattern } = styles[label - 1];
      if (style.outline && isEdge(values, inside, stride, columns, rows, x, y, style.width)) {
        if (isDrawn(pattern, x + y, style.width)) {
          pixels[y * width + x] = BLACK | (color[2] << 16) | (color[1] << 8) | color[0];
        }
      } else if (style.fill) {
        pixels[y * width + x] = blend(pixels[y * width + x], color);
      }
    }
  }
}

/** First pixel in or after each column. @param {Int32Array} columns @param {number} count */
function firstPixels(columns, count) {
  const first = new Int32Array(count + 1);
  let column = count;
  for (let x = columns.length - 1; x >= 0; x--) {
    if (columns[x] < 0) continue;
    while (column > columns[x]) first[column--] = x + 1;
    first[column] = x;
  }
  while (column > 0) first[--column] = first[column + 1];
  return first;
}

/** Whether a pixel inside of a region is at most `reach` pixels from one outside; the canvas has no outside.
 * @param {Uint8Array} values @param {Uint8Array} inside @param {number} stride
 * @param {Int32Array} columns @param {Int32Array} rows @param {number} x @param {number} y @param {number} reach */
function isEdge(values, inside, stride, columns, rows, x, y, reach) {
  const row = rows[y] * stride;
  const column = columns[x];
  for (let step = 1; step <= reach; step++) {
    if (x >= step && (columns[x - step] < 0 || !inside[values[row + columns[x - step]]])) return true;
    if (x + step < columns.length && (columns[x + step] < 0 || !inside[values[row + columns[x + step]]])) return true;
    if (y >= step && (rows[y - step] < 0 || !inside[values[rows[y - step] * stride + column]])) return true;
    if (y + step < rows.length && (rows[y + step] < 0 || !inside[values[rows[y + step] * stride + column]]))
      return true;
  }
  return false;
}

/** @param {number[]} pattern @param {number} position @param {number} width */
function isDrawn(pattern, position, width) {
  if (!pattern.length) return true;
  const [dash, gap] = pattern;
  return position % ((dash + gap) * width) < dash * width;
}

/** @param {number} pixel @param {number[]} color */
function blend(pixel, color) {
  const mix = (/** @type {number} */ shift, /** @type {number} */ value) =>
    ((((pixel >> shift) & 255) * (256 - FILL) + value * FILL) >> 8) << shift;
  return (BLACK | mix(16, color[2]) | mix(8, color[1]) | mix(0, color[0])) >>> 0;
}

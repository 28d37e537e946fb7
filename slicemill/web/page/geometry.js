// @ts-check
/** Planes, their axes, and where a voxel lies on a canvas. Voxels are x, y, z in LPS+ order, as in the store. */

/** @typedef {"axial" | "coronal" | "sagittal"} Plane */
/** @typedef {{x: number, y: number, z: number}} Voxel */
/** @typedef {[number, number, number]} Triple */
/**
 * @typedef {object} Mapping
 * @property {number} scaleX device pixels of a voxel along a row
 * @property {number} scaleY device pixels of a voxel along a column
 * @property {number} originX device position of the left edge of the section
 * @property {number} originY device position of its top edge
 */
/** @typedef {{zoom: number, column: number, row: number}} View Zoom, and what is in the middle, in voxels. */

/** @type {Plane[]} */
export const PLANES = ["axial", "coronal", "sagittal"];

/** Axis of a plane's rows (from left to right), of its columns (from top), and across.
 * @type {Record<Plane, {across: "x" | "y" | "z", right: "x" | "y" | "z", down: "y" | "z", letters: string[]}>} */
export const AXES = {
  axial: { across: "z", right: "x", down: "y", letters: ["R", "L", "A", "P"] },
  coronal: { across: "y", right: "x", down: "z", letters: ["R", "L", "H", "F"] },
  sagittal: { across: "x", right: "y", down: "z", letters: ["A", "P", "H", "F"] },
};

const ZOOMS = { least: 0.5, most: 40 };
const INDEX = { z: 0, y: 1, x: 2 };

/** Return the number of voxels along an axis, from a shape z, y, x.
 * @param {Triple} shape @param {"x" | "y" | "z"} axis */
export function extent(shape, axis) {
  return shape[INDEX[axis]];
}

/** Return columns, rows, and the size of a voxel in mm, of a plane's sections.
 * @param {Plane} plane @param {Triple} shape @param {Triple} spacing */
export function sectionSize(plane, shape, spacing) {
  const { right, down } = AXES[plane];
  return {
    columns: shape[INDEX[right]],
    rows: shape[INDEX[down]],
    columnMm: spacing[INDEX[right]],
    rowMm: spacing[INDEX[down]],
  };
}

/** Return column and row of a voxel in a section: z runs from superior, at the top, to inferior.
 * @param {Plane} plane @param {Voxel} voxel @param {Triple} shape */
export function toSection(plane, voxel, shape) {
  const { right, down } = AXES[plane];
  return { column: voxel[right], row: down === "z" ? shape[0] - 1 - voxel.z : voxel.y };
}

/** Return the voxel at a column and row of the section through another voxel; fractions are kept.
 * @param {Plane} plane @param {number} column @param {number} row @param {Voxel} through @param {Triple} shape */
export function toVoxel(plane, column, row, through, shape) {
  const { right, down } = AXES[plane];
  const voxel = { ...through };
  voxel[right] = column;
  voxel[down] = down === "z" ? shape[0] - 1 - row : row;
  return voxel;
}

/** Return a position in mm, LPS, of a voxel.
 * @param {number[][]} affine @param {Voxel} voxel @returns {Triple} */
export function toMm(affine, { x, y, z }) {
  const at = (/** @type {number[]} */ row) => row[0] * x + row[1] * y + row[2] * z + row[3];
  return [at(affine[0]), at(affine[1]), at(affine[2])];
}

/** Return the voxel, with fractions, at a position in mm, LPS: Cramer's rule.
 * @param {number[][]} affine @param {Triple} mm @returns {Voxel} */
export function toVoxelOf(affine, mm) {
  const [[a, b, c], [d, e, f], [g, h, i]] = affine;
  const [p, q, r] = mm.map((value, axis) => value - affine[axis][3]);
  const size = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  return {
    x: (p * (e * i - f * h) - b * (q * i - f * r) + c * (q * h - e * r)) / size,
    y: (a * (q * i - f * r) - p * (d * i - f * g) + c * (d * r - q * g)) / size,
    z: (a * (e * r - q * h) - b * (d * r - q * g) + p * (d * h - e * g)) / size,
  };
}

/** Return the distance of two voxels, mm.
 * @param {number[][]} affine @param {Voxel} from @param {Voxel} to */
export function distanceMm(affine, from, to) {
  const [a, b] = [toMm(affine, from), toMm(affine, to)];
  return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}

/** Return where a section lies on a canvas of a size in device pixels.
 * @param {ReturnType<typeof sectionSize>} size @param {View} view @param {number} width @param {number} height
 * @returns {Mapping} */
export function makeMapping(size, view, width, height) {
  const fit = Math.min(width / (size.columns * size.columnMm), height / (size.rows * size.rowMm));
  const scaleX = fit * view.zoom * size.columnMm;
  const scaleY = fit * view.zoom * size.rowMm;
  return { scaleX, scaleY, originX: width / 2 - view.column * scaleX, originY: height / 2 - view.row * scaleY };
}

/** Return for each device pixel the voxel that its middle is in, -1 outside.
 * @param {number} pixels @param {number} origin @param {number} scale @param {number} voxels */
export function sample(pixels, origin, scale, voxels) {
  const indices = new Int32Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const index = Math.floor((pixel + 0.5 - origin) / scale);
    indices[pixel] = index >= 0 && index < voxels ? index : -1;
  }
  return indices;
}

/** Return the view of a whole section. @param {{columns: number, rows: number}} size @returns {View} */
export function wholeView(size) {
  return { zoom: 1, column: size.columns / 2, row: size.rows / 2 };
}

/** Return a view zoomed around a place of the section, or its middle. @param {View} view @param {number} factor
 * @param {number} [column] @param {number} [row] @returns {View} */
export function zoomed(view, factor, column = view.column, row = view.row) {
  const zoom = Math.min(ZOOMS.most, Math.max(ZOOMS.least, view.zoom * factor));
  const ratio = view.zoom / zoom;
  return { zoom, column: column + (view.column - column) * ratio, row: row + (view.row - row) * ratio };
}

/** Return a view moved within a section. @param {View} view @param {{columns: number, rows: number}} size
 * @param {number} columns @param {number} rows @returns {View} */
export function moved(view, size, columns, rows) {
  return {
    zoom: view.zoom,
    column: Math.min(size.columns, Math.max(0, view.column + columns)),
    row: Math.min(size.rows, Math.max(0, view.row + rows)),
  };
}

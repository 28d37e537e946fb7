// @ts-check
/** Surfaces in 3-D, drawn by the processor: no graphics card is needed, and pixels are the same everywhere. */

/** @typedef {import("./geometry.js").Triple} Triple */
/**
 * @typedef {object} Mesh
 * @property {Float32Array} points x, y, z of each vertex, LPS mm
 * @property {Int8Array} normals
 * @property {Uint16Array} triangles
 */
/** @typedef {{mesh: Mesh, color: number[], isClear: boolean}} Body A surface as it is drawn. */
/** @typedef {{right: Triple, up: Triple, near: Triple}} Axes Directions of the picture, LPS; near is to the viewer. */
/** @typedef {{axes: Axes, middle: Triple, scale: number}} Camera Scale: pixels of a mm. */
/**
 * @typedef {object} Layer What was drawn at each pixel.
 * @property {Float32Array} depth mm towards the viewer; -Infinity where nothing is
 * @property {Uint32Array} colors red in the lowest byte, opacity in the highest
 */

const CLEAR = { least: 64, rim: 130 };
/** Opacity, of 256, of a surface that others are inside of: seen straight on, and what is added at its rim. */
const EDGE = -1e-4;
/** What counts as inside of a triangle, so that roundings leave no gaps between triangles. */
const AMBIENT = 0.28;

/** Read a surface; slicemill/web/surface_bytes.py describes the bytes. @param {ArrayBuffer} buffer @returns {Mesh} */
export function readMesh(buffer) {
  const [vertices, triangles] = new Uint32Array(buffer, 0, 2);
  const [x, y, z, step] = new Float32Array(buffer, 8, 4);
  const middle = [x, y, z];
  const points = Float32Array.from(
    new Int16Array(buffer, 24, vertices * 3),
    (value, index) => middle[index % 3] + value * step,
  );
  const start = 24 + vertices * 6;
  return {
    points,
    triangles: new Uint16Array(buffer, start, triangles * 3),
    normals: new Int8Array(buffer, start + triangles * 6, vertices * 3),
  };
}

/** Return the directions of the picture. Turn 0: from anterior; a quarter: from the patient's left. Tilt: from above.
 * @param {number} turn @param {number} tilt radians @returns {Axes} */
export function turnedAxes(turn, tilt) {
  const [cos, sin, rise, flat] = [Math.cos(turn), Math.sin(turn), Math.sin(tilt), Math.cos(tilt)];
  return {
    right: [cos, sin, 0],
    up: [-sin * rise, cos * rise, flat],
    near: [sin * flat, -cos * flat, rise],
  };
}

/** @param {Triple} a @param {ArrayLike<number>} b @param {number} [at] */
export function dot(a, b, at = 0) {
  return a[0] * b[at] + a[1] * b[at + 1] + a[2] * b[at + 2];
}

/** Return middle and half size of the box around surfaces, mm. @param {Mesh[]} meshes */
export function boxOf(meshes) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  for (const { points } of meshes) {
    for (let index = 0; index < points.length; index++) {
      const axis = index % 3;
      if (points[index] < low[axis]) low[axis] = points[index];
      if (points[index] > high[axis]) high[axis] = points[index];
    }
  }
  const middle = /** @type {Triple} */ (low.map((value, axis) => (value + high[axis]) / 2));
  const half = /** @type {Triple} */ (low.map((value, axis) => (high[axis] - value) / 2));
  return { middle, half };
}

/** Return column, row and depth of a position. @param {Camera} camera @param {Triple} mm
 * @param {number} width @param {number} height @returns {Triple} */
export function project({ axes, middle, scale }, mm, width, height) {
  const from = /** @type {Triple} */ (mm.map((value, axis) => value - middle[axis]));
  return [width / 2 + dot(axes.right, from) * scale, height / 2 - dot(axes.up, from) * scale, dot(axes.near, from)];
}

/** Return the position, mm, of a pixel at a depth. @param {Camera} camera @param {number} x @param {number} y
 * @param {number} depth @param {number} width @param {number} height @returns {Triple} */
export function unproject({ axes, middle, scale }, x, y, depth, width, height) {
  const [right, up] = [(x - width / 2) / scale, (height / 2 - y) / scale];
  return /** @type {Triple} */ (
    middle.map((value, axis) => value + axes.right[axis] * right + axes.up[axis] * up + axes.near[axis] * depth)
  );
}

/** Paint surfaces, and return the depth at each pixel, of the opaque ones if there is one.
 * @param {Body[]} bodies @param {Camera} camera @param {number} width @param {number} height
 * @param {Uint32Array} pixels uint32[height * width], red in the lowest byte
 * @returns {Float32Array} mm towards the viewer from the camera's middle, -Infinity where nothing is */
export function paintSurfaces(bodies, camera, width, height, pixels) {
  const [solid, clear] = [false, true].map((isClear) => {
    const layer = { depth: new Float32Array(width * height).fill(-Infinity), colors: new Uint32Array(width * height) };
    for (const body of bodies) if (body.isClear === isClear) drawBody(body, camera, width, height, layer);
    return layer;
  });
  for (let index = 0; index < pixels.length; index++) {
    let pixel = solid.depth[index] === -Infinity ? 0xff000000 : solid.colors[index];
    if (clear.depth[index] > solid.depth[index]) pixel = blend(pixel, clear.colors[index]);
    pixels[index] = pixel;
    if (solid.depth[index] === -Infinity) solid.depth[index] = clear.depth[index];
  }
  return solid.depth;
}

/** Draw the triangles of a surface that face the viewer. @param {Body} body @param {Camera} camera
 * @param {number} width @param {number} height @param {Layer} layer */
function drawBody({ mesh, color, isClear }, camera, width, height, layer) {
  const { points, normals, triangles } = mesh;
  const count = points.length / 3;
  const { right, up, near } = camera.axes;
  const scaled = (/** @type {Triple} */ axis, /** @type {number} */ factor) =>
    /** @type {Triple} */ (axis.map((value) => value * factor));
  const [across, down] = [scaled(right, camera.scale), scaled(up, -camera.scale)];
  const [x0, y0, z0] = [
    width / 2 - dot(across, camera.middle),
    height / 2 - dot(down, camera.middle),
    -dot(near, camera.middle),
  ];
  const [xs, ys, zs, facing] = Array.from({ length: 4 }, () => new Float32Array(count));
  for (let vertex = 0, at = 0; vertex < count; vertex++, at += 3) {
    xs[vertex] = x0 + dot(across, points, at);
    ys[vertex] = y0 + dot(down, points, at);
    zs[vertex] = z0 + dot(near, points, at);
    facing[vertex] = Math.min(1, Math.max(0, dot(near, normals, at) / 127)); // integers may be longer than 127
  }
  const shades = Uint32Array.from({ length: 256 }, (_, facing) => shade(color, facing / 255, isClear));
  for (let at = 0; at < triangles.length; at += 3) {
    drawTriangle(xs, ys, zs, facing, triangles[at], triangles[at + 2], triangles[at + 1], shades, width, height, layer);
  }
}

/** Draw a triangle, clockwise on the screen; the middles of its pixels count.
 * @param {Float32Array} xs @param {Float32Array} ys @param {Float32Array} zs @param {Float32Array} facing
 * @param {number} a @param {number} b @param {number} c @param {Uint32Array} shades
 * @param {number} width @param {number} height @param {Layer} layer */
function drawTriangle(xs, ys, zs, facing, a, b, c, shades, width, height, { depth, colors }) {
  const [ax, ay, bx, by, cx, cy] = [xs[a], ys[a], xs[b], ys[b], xs[c], ys[c]];
  const area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
  if (!(area > 0)) return; // it is seen from inside
  const left = Math.max(0, Math.ceil(Math.min(ax, bx, cx) - 0.5));
  const end = Math.min(width - 1, Math.floor(Math.max(ax, bx, cx) - 0.5));
  const top = Math.max(0, Math.ceil(Math.min(ay, by, cy) - 0.5));
  const bottom = Math.min(height - 1, Math.floor(Math.max(ay, by, cy) - 0.5));
  for (let row = top; row <= bottom; row++) {
    const y = row + 0.5;
    for (let column = left; column <= end; column++) {
      const x = column + 0.5;
      const ofB = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area;
      const ofC = ((ax - x) * (by - y) - (ay - y) * (bx - x)) / area;
      const ofA = 1 - ofB - ofC;
      if (ofA < EDGE || ofB < EDGE || ofC < EDGE) continue;
      const z = ofA * zs[a] + ofB * zs[b] + ofC * zs[c];
      const index = row * width + column;
      if (z <= depth[index]) continue;
      depth[index] = z;
      colors[index] = shades[Math.round(255 * (ofA * facing[a] + ofB * facing[b] + ofC * facing[c]))];
    }
  }
}

/** Return a pixel of a surface. @param {number[]} color
 * @param {number} facing 1 if the surface is seen straight on, 0 at its rim @param {boolean} isClear */
function shade(color, facing, isClear) {
  const light = AMBIENT + (1 - AMBIENT) * facing;
  const [red, green, blue] = color.map((value) => Math.round(value * (isClear ? 1 : light)));
  const opacity = isClear ? CLEAR.least + Math.round(CLEAR.rim * (1 - facing) ** 2) : 255;
  return ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** @param {number} below @param {number} above */
function blend(below, above) {
  const opacity = above >>> 24;
  const mix = (/** @type {number} */ shift) =>
    ((((below >> shift) & 255) * (256 - opacity) + ((above >> shift) & 255) * opacity) >> 8) << shift;
  return (0xff000000 | mix(16) | mix(8) | mix(0)) >>> 0;
}

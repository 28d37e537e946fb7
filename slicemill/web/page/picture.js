// @ts-check
/** The form of a picture: a person says with which window it was made, and which part of it is the slice. */

import { byId, makeOption } from "./dom.js";

/** @typedef {import("./jobs_api.js").PictureRequest} PictureRequest */

/** @type {[string, number, number][]} */
const WINDOWS = [
  ["Liver", -160, 240],
  ["Soft tissue", -200, 300],
  ["Lung", -1000, 400],
];
const SIDES = /** @type {const} */ (["left", "top", "right", "bottom"]);
const SHOWN_PX = 480;

/** @param {string} name */
const field = (name) => byId(`picture-${name}`, HTMLInputElement);
/** @param {string} name */
const isPictureName = (name) => /\.(png|jpe?g)$/i.test(name);

/** Return whether files are one picture. @param {{name: string}[]} files */
export const isPicture = (files) => files.length === 1 && isPictureName(files[0].name);

export class PictureForm {
  /** @param {(file: File, request: PictureRequest) => void} onReady */
  constructor(onReady) {
    this.form = byId("picture", HTMLFormElement);
    this.canvas = byId("picture-frame", HTMLCanvasElement);
    /** @type {File | null} */
    this.file = null;
    /** @type {ImageBitmap | null} */
    this.bitmap = null;
    const choice = byId("picture-window", HTMLSelectElement);
    choice.append(
      makeOption("", "Choose a window"),
      ...WINDOWS.map(([name, low, high], index) => makeOption(String(index), `${name}, ${low} to ${high} HU`)),
      makeOption("own", "Own"),
    );
    choice.addEventListener("change", () => {
      const window = WINDOWS[Number(choice.value)];
      if (choice.value && window) [field("low").value, field("high").value] = window.slice(1).map(String);
    });
    for (const side of ["low", "high"]) {
      field(side).required = true;
      field(side).addEventListener("input", () => (choice.value = "own"));
    }
    for (const side of SIDES) {
      field(side).required = true;
      field(side).addEventListener("input", () => this.draw());
    }
    this.connectDrag();
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.file) onReady(this.file, this.read());
      this.hide();
    });
    byId("picture-cancel", HTMLButtonElement).addEventListener("click", () => this.hide());
  }

  /** @param {File} file */
  async show(file) {
    this.bitmap = await createImageBitmap(file);
    this.file = file;
    this.form.reset();
    const { width, height } = this.bitmap;
    this.setFrame([0, 0, width, height]);
    this.form.hidden = false;
    byId("picture-window", HTMLSelectElement).focus();
    this.draw();
  }

  hide() {
    this.form.hidden = true;
    this.file = null;
  }

  /** @returns {PictureRequest} */
  read() {
    const number = (/** @type {string} */ name) => field(name).valueAsNumber;
    const [left, top, right, bottom] = SIDES.map(number);
    const mm = number("mm");
    const pixel_mm = Number.isFinite(mm) ? mm : null;
    return { low: number("low"), high: number("high"), left, top, right, bottom, pixel_mm };
  }

  /** @param {number[]} sides left, top, right, bottom */
  setFrame(sides) {
    const [width, height] = [this.bitmap?.width ?? 1, this.bitmap?.height ?? 1];
    SIDES.forEach((side, index) => {
      const most = index % 2 ? height : width;
      field(side).max = String(most);
      field(side).value = String(Math.min(most, Math.max(0, Math.round(sides[index]))));
    });
  }

  draw() {
    const context = this.canvas.getContext("2d");
    if (!context || !this.bitmap) return;
    const { width, height } = this.bitmap;
    const scale = Math.min(1, SHOWN_PX / Math.max(width, height));
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    context.drawImage(this.bitmap, 0, 0, this.canvas.width, this.canvas.height);
    const { left, top, right, bottom } = this.read();
    context.strokeStyle = "#7cc4ff";
    context.lineWidth = 2;
    context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
  }

  connectDrag() {
    /** @type {number[] | null} */
    let from = null;
    const place = (/** @type {PointerEvent} */ event) => {
      const box = this.canvas.getBoundingClientRect();
      const factor = (this.bitmap?.width ?? 1) / box.width;
      return [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      from = place(event);
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const to = place(event);
      this.setFrame([0, 1, 2, 3].map((side) => (side < 2 ? Math.min : Math.max)(from?.[side % 2] ?? 0, to[side % 2])));
      this.draw();
    });
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => (from = null));
  }
}

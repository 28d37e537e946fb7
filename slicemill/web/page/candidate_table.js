// @ts-check
/** The candidates of nodules of an uploaded scan: a threshold, and a table whose rows jump to their slice. */

import { request } from "./api.js";
import { byId, fillTable, makeButton, makeRowButton } from "./dom.js";
import { describeThreshold, firstThreshold, format, listAbove } from "./nodules.js";

/** @typedef {import("./nodules.js").Candidate} Candidate */
/** @typedef {import("./jobs_api.js").Job} Job */

const FILE = "segmentation.candidates.json";
const STEP = 0.01;

/** Fill a table with candidates. @param {HTMLTableElement} table @param {Candidate[]} rows
 * @param {(one: Candidate) => void} onJump */
function showRows(table, rows, onJump) {
  table.hidden = !rows.length;
  const isJudged = rows.some(({ malignancy }) => malignancy !== null);
  const titles = ["Candidate", "Probability", ...(isJudged ? ["Malignancy"] : []), "Slice", "mm", "ml"];
  const cells = rows.map((one) => [
    makeRowButton(one.number, `Show candidate ${one.number} in slice ${one.slice + 1}`),
    format(one.probability, 3),
    ...(isJudged ? [one.malignancy === null ? "-" : format(one.malignancy, 2)] : []),
    one.slice + 1,
    format(one.diameter_mm, 1),
    format(one.volume_ml, 2),
  ]);
  fillTable(table, titles, cells).forEach((row, index) =>
    row.addEventListener("click", () => {
      for (const other of document.querySelectorAll(".candidates-box tr.chosen")) other.classList.remove("chosen");
      row.classList.add("chosen");
      onJump(rows[index]);
    }),
  );
}

export class CandidateTable {
  /** @param {(one: Candidate) => void} onJump @param {(text: string) => void} onError */
  constructor(onJump, onError) {
    this.onJump = onJump;
    this.onError = onError;
    this.job = 0;
    /** @type {Candidate[]} */
    this.candidates = [];
    /** @type {import("./nodules.js").Rate[]} */
    this.rates = [];
    this.threshold = 0;
    this.box = byId("candidates-box", HTMLElement);
    this.slider = byId("candidate-threshold", HTMLInputElement);
    this.slider.addEventListener("input", () => this.setThreshold(this.slider.valueAsNumber));
    this.slider.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Show the list of a job, once it is written. @param {Job} job */
  async show({ id, files }) {
    const isWritten = files.some(({ name }) => name === FILE);
    if (!isWritten) {
      this.job = 0;
      this.box.hidden = true;
      return;
    }
    if (this.job === id) return;
    this.job = id;
    this.box.hidden = true;
    try {
      const found = await (await request(`/api/jobs/${id}/results/${FILE}`)).json();
      if (this.job !== id) return;
      this.fill(found);
    } catch (error) {
      this.onError(error instanceof Error ? error.message : String(error));
    }
  }

  /** @typedef {Record<string, number>} Numbers by rate
   * @param {{candidates: Candidate[], thresholds: Numbers, sensitivity?: Numbers}} found */
  fill({ candidates, thresholds, sensitivity = {} }) {
    this.candidates = candidates;
    this.rates = Object.entries(thresholds)
      .map(([rate, threshold]) => ({ rate: Number(rate), threshold, sensitivity: sensitivity[rate] }))
      .sort((a, b) => a.rate - b.rate);
    byId("candidate-rates", HTMLElement).replaceChildren(
      ...this.rates.map(({ rate, threshold }) =>
        makeButton(`About ${rate} false mark${rate === 1 ? "" : "s"} a scan`, `Threshold ${threshold}`, () =>
          this.setThreshold(threshold),
        ),
      ),
    );
    this.box.hidden = false;
    this.setThreshold(firstThreshold(this.rates));
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const steps = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 });
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    const next = (Math.round(this.threshold / STEP) + steps[event.key]) * STEP;
    this.setThreshold(Math.min(1, Math.max(0, next)));
  }

  /** List what counts at a threshold; the rest is folded below. @param {number} threshold */
  setThreshold(threshold) {
    this.threshold = threshold;
    this.slider.value = String(threshold);
    const above = listAbove(this.candidates, threshold);
    const below = this.candidates.filter((one) => !above.includes(one));
    const text = describeThreshold(this.candidates, this.rates, threshold);
    byId("candidate-text", HTMLElement).textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
    showRows(byId("candidate-table", HTMLTableElement), above, this.onJump);
    showRows(byId("candidate-table-below", HTMLTableElement), below, this.onJump);
    byId("candidates-below", HTMLElement).hidden = !below.length;
    byId("candidates-below-text", HTMLElement).textContent = `${below.length} below the threshold`;
  }
}

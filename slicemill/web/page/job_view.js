// @ts-check
/** A scan on the page: its steps, the answer, and what can be downloaded. */

import { byId, clean, counted, cut, make, makeButton } from "./dom.js";
import { getThumbnail } from "./jobs_api.js";

/** @typedef {import("./jobs_api.js").Job} Job */

const ICONS = { found: "!", none: "?", volumes: "i" };
/** None of them says that a patient is healthy. */
const LONGEST_DETAIL = 600;

/** @param {number} bytes */
export function formatBytes(bytes) {
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(0)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

/** Return what happens now, and how much of it is done. @param {Job} job @param {number} total bytes to send
 * @returns {[string, number | null]} */
export function describeWork(job, total) {
  switch (job.status) {
    case "uploading":
      return [`Uploading: ${formatBytes(job.upload_bytes)} of ${formatBytes(total)}`, job.upload_bytes / (total || 1)];
    case "reading":
      if (!job.slices) return ["Reading the header", null];
      return [`Reading: ${job.slices_read} of ${counted(job.slices, "slice")}`, job.slices_read / job.slices];
    case "waiting":
      return [job.ahead ? `Waiting for ${counted(job.ahead, "other scan")}` : "Waiting for the model", null];
    case "segmenting": {
      const rate = job.slices_per_second === null ? "" : `, ${job.slices_per_second} slices/s`;
      return [`Segmenting: ${Math.round(job.share * 100)} %${rate}`, job.share];
    }
    case "writing":
      return ["The answer is there. Measuring, and writing files", null];
    case "choosing":
      return ["Choose a scan", null];
    default:
      return ["", null];
  }
}

/** Show a job. @param {Job} job @param {number} total bytes to send @param {(index: number) => void} onChoose */
export function showJob(job, total, onChoose) {
  const isActive = job.status !== "done" && job.status !== "failed";
  const [text, share] = describeWork(job, total);
  byId("work", HTMLElement).hidden = !isActive;
  byId("work-text", HTMLElement).textContent = text;
  const bar = byId("work-bar", HTMLProgressElement);
  bar.hidden = job.status === "choosing"; // nothing goes on
  if (share === null) bar.removeAttribute("value");
  else bar.value = share;
  byId("cancel", HTMLElement).hidden = !isActive;
  byId("another", HTMLElement).hidden = isActive;
  byId("remove", HTMLElement).hidden = isActive;
  showAnswer(job);
  showSteps(job);
  showChoices(job, onChoose);
  showDownloads(job);
}

/** @param {Job} job */
function showAnswer({ answer }) {
  const box = byId("answer", HTMLElement);
  box.hidden = !answer;
  if (!answer) return;
  box.className = `answer ${answer.kind}`;
  byId("answer-icon", HTMLElement).textContent = ICONS[answer.kind];
  byId("headline", HTMLElement).textContent = clean(answer.headline);
  byId("details", HTMLElement).replaceChildren(...answer.details.map((text) => make("li", cut(text, LONGEST_DETAIL))));
}

/** @param {Job} job */
function showSteps({ steps }) {
  const all = steps.reduce((sum, step) => sum + step.seconds, 0);
  byId("steps-title", HTMLElement).textContent = `Steps, ${all.toFixed(1)} s`;
  byId("steps", HTMLElement).replaceChildren(
    ...steps.map((step) => make("li", `${step.name}: ${step.seconds.toFixed(1)} s${step.is_over ? "" : " …"}`)),
  );
}

/** @param {Job} job @param {(index: number) => void} onChoose */
function showChoices(job, onChoose) {
  const { status, choices } = job;
  const box = byId("choices", HTMLElement);
  const isNew = box.hidden;
  box.hidden = status !== "choosing";
  if (box.hidden) return;
  const list = byId("choice-list", HTMLElement);
  if (isNew) listChoices(list, choices, onChoose);
  for (const index of job.thumbnails) {
    const canvas = list.querySelectorAll("canvas")[index];
    if (canvas.dataset.drawn) continue;
    canvas.dataset.drawn = "true";
    getThumbnail(job.id, index).then(
      (gray) => drawGray(canvas, gray),
      () => {}, // a choice can be made without it
    );
  }
}

/** @param {HTMLCanvasElement} canvas @param {Uint8Array} gray values of a square, row by row */
function drawGray(canvas, gray) {
  canvas.width = canvas.height = Math.sqrt(gray.length);
  const context = canvas.getContext("2d");
  const picture = context?.createImageData(canvas.width, canvas.height);
  if (!context || !picture) return;
  new Uint32Array(picture.data.buffer).set(Uint32Array.from(gray, (value) => (value * 0x010101) | 0xff000000));
  context.putImageData(picture, 0, 0);
}

/** @param {HTMLElement} list @param {import("./jobs_api.js").Choice[]} choices
 * @param {(index: number) => void} onChoose */
function listChoices(list, choices, onChoose) {
  list.replaceChildren(
    ...choices.map((choice, index) => {
      const button = makeButton("", "", () => onChoose(index));
      button.removeAttribute("title");
      button.disabled = choice.refused !== null;
      const canvas = make("canvas");
      canvas.ariaHidden = "true";
      button.append(canvas, make("span", clean(choice.name)));
      button.append(make("span", clean(choice.refused ?? choice.detail), "choice-detail"));
      const item = make("li");
      item.append(button);
      return item;
    }),
  );
  list.querySelector("button")?.focus();
}

/** @param {Job} job */
function showDownloads({ id, files, missing }) {
  const box = byId("downloads", HTMLElement);
  box.hidden = !files.length && !missing.length;
  byId("download-list", HTMLElement).replaceChildren(
    ...files.map((file) => {
      const link = make("a", file.text);
      link.href = `/api/jobs/${id}/results/${encodeURIComponent(file.name)}`;
      link.download = file.name;
      const item = make("li");
      item.append(link, ` ${formatBytes(file.bytes)}`);
      return item;
    }),
    ...missing.map((text) => make("li", clean(text), "problem")),
  );
}

/** Show what a model's file says of it. @param {import("./jobs_api.js").Model} model */
export function showModel(model) {
  const dice = model.training?.validation ?? {};
  const scores = Object.keys(model.labels).flatMap((name) => {
    const value = dice[`validation_dice_${name}`];
    return typeof value === "number" ? [`${clean(name)} ${value.toFixed(2)}`] : [];
  });
  const rows = /** @type {[string, string][]} */ ([
    ["Finds", Object.keys(model.labels).map(clean).join(", ")],
    ["Tumor", model.tumor ? clean(model.tumor) : "no label: it gives volumes only"],
    ["Candidates", model.judges_candidates ? "of nodules, judged by a classifier" : "not listed"],
    ["Slices", `${model.size[1]} x ${model.size[0]}, ${counted(model.context, "slice")} of context`],
    ["Threshold", model.gives_probability ? "can be moved" : "fixed: the model gives no probabilities"],
    ["Trained on", model.trained_on ?? "not in the file: a scan of another kind is not noticed"],
    ["Dice on cases kept back in training", scores.join(", ") || "not in the file"],
    ["License", model.license ? clean(model.license) : "not in the file"],
    ["Runs on", model.provider],
  ]);
  byId("model-card", HTMLElement).replaceChildren(
    ...rows.flatMap(([name, text]) => [make("dt", name), make("dd", text)]),
  );
}

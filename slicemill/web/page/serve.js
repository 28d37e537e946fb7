// @ts-check
/** The page of `slicemill serve`: drop a scan, see the answer, look at it. */

import { startSession } from "./api.js";
import { CandidateTable } from "./candidate_table.js";
import { connectKeys, connectTheme, LUNG, PRESETS } from "./controls.js";
import { byId, clean, counted, cut, make, makeButton, makeOption } from "./dom.js";
import { connectDrop } from "./drop.js";
import { toVoxelOf } from "./geometry.js";
import { describeWork, formatBytes, showJob, showModel } from "./job_view.js";
import { chooseScan, createJob, endJob, followJob, getServer, sendFiles, startJob } from "./jobs_api.js";
import { connectPicture, listKeys, showMessage } from "./main.js";
import { isPicture, PictureForm } from "./picture.js";
import { Viewer } from "./viewer.js";

/** @typedef {import("./jobs_api.js").Job} Job */
/** @typedef {import("./jobs_api.js").PictureRequest} PictureRequest */
/** @typedef {import("./drop.js").Named} Named */

const POLL_MS = 300;
const LONGEST_REASON = 600;
const STEP = 5;
/** Steps of the threshold, percent. */

/** @param {unknown} error */
const explain = (error) => (error instanceof Error ? error.message : String(error));

class Page {
  /** @param {import("./jobs_api.js").Server} server */
  constructor(server) {
    this.server = server;
    this.viewer = new Viewer(0, showMessage);
    this.job = 0;
    this.total = 0;
    this.shown = 0;
    /** The job whose slices are shown. */
    /** @type {Promise<void> | null} */
    this.asking = null;
    this.status = "";
    this.stop = () => {};
    this.upload = new AbortController();
    this.picture = new PictureForm((file, request) => void this.send([{ file, name: file.name }], request));
    connectDrop((files) => void this.take(files), showMessage);
    connectPicture(this.viewer);
    connectKeys([
      ...listKeys(this.viewer, null),
      {
        keys: ["[", "]"],
        shown: "[ ]",
        text: "lower or higher threshold",
        action: (event) => this.moveThreshold(this.slider.valueAsNumber + (event.key === "[" ? -STEP : STEP)),
      },
    ]);
    this.candidates = new CandidateTable((one) => this.showCandidate(one), showMessage);
    this.slider = byId("threshold", HTMLInputElement);
    this.slider.addEventListener("input", () => this.moveThreshold(this.slider.valueAsNumber));
    byId("cancel", HTMLElement).addEventListener("click", () => void this.remove(this.job));
    byId("remove", HTMLElement).addEventListener("click", () => void this.remove(this.job));
    byId("another", HTMLElement).addEventListener("click", () => void this.goToStart());
    byId("model", HTMLSelectElement).addEventListener("change", () => this.showModels());
    byId("example", HTMLElement).addEventListener("click", () => void this.send([], null));
  }

  /** Show the start screen, with the scans that are kept. */
  async goToStart() {
    this.stop();
    this.job = this.shown = 0;
    this.viewer.close();
    try {
      this.server = await getServer();
    } catch (error) {
      showMessage(explain(error));
    }
    for (const id of ["main", "job"]) byId(id, HTMLElement).hidden = true;
    byId("start", HTMLElement).hidden = false;
    byId("case-name", HTMLElement).textContent = document.title = "slicemill";
    this.showStart();
  }

  showStart() {
    const { limits, jobs } = this.server;
    byId("accepts", HTMLElement).textContent =
      `DICOM (files, folder or zip), NIfTI, MetaImage, NRRD, or one picture (PNG, JPEG). At most ` +
      `${formatBytes(limits.file_bytes)}, ${limits.slices} slices and ${limits.voxels / 1e6} million voxels. ` +
      `Nothing leaves this machine.`;
    byId("kept", HTMLElement).hidden = !jobs.length;
    byId("kept-note", HTMLElement).textContent =
      `At most ${counted(limits.jobs, "scan")} at a time. A scan that nobody looks at for ${limits.idle_minutes} ` +
      `minutes is removed, and all are when slicemill ends.`;
    byId("kept-list", HTMLElement).replaceChildren(
      ...jobs.map((job) => {
        const name = clean(job.name);
        const [text] = describeWork(job, 0);
        const state = job.failure ?? job.answer?.headline ?? text;
        const item = make("li");
        item.append(
          makeButton("Open", `Open ${name}`, () => this.follow(job.id)),
          makeButton("Remove", `Remove ${name}`, () => void this.remove(job.id)),
          make("strong", name),
          make("span", clean(state)),
        );
        return item;
      }),
    );
    this.showModels();
  }

  showModels() {
    const { models, failure } = this.server;
    const choice = byId("model", HTMLSelectElement);
    if (!models) {
      choice.replaceChildren(makeOption("0", failure ? "not loaded" : "loading …"));
      return;
    }
    if (choice.disabled) choice.replaceChildren(...models.map(({ name }, i) => makeOption(String(i), clean(name))));
    choice.disabled = false;
    const model = models[Number(choice.value)];
    showModel(model);
    byId("example", HTMLElement).hidden = model.judges_candidates; // it has no lung
  }

  /** Wait until the models are loaded; files can be dropped before. */
  async waitForModels() {
    while (!this.server.models && !this.server.failure) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      this.server = await getServer();
    }
    if (this.server.failure) showMessage(this.server.failure);
    this.showModels();
  }

  /** Take files that were dropped or chosen. @param {Named[]} files */
  async take(files) {
    showMessage("");
    this.picture.hide();
    const { limits } = this.server;
    const total = files.reduce((sum, { file }) => sum + file.size, 0);
    if (!files.length) showMessage("There are no files in it.");
    else if (files.length > limits.files) showMessage(`These are ${files.length} files; at most ${limits.files} fit.`);
    else if (total > limits.file_bytes)
      showMessage(`These files have ${formatBytes(total)}; at most ${formatBytes(limits.file_bytes)} fit.`);
    else if (isPicture(files))
      await this.picture.show(files[0].file).catch(() => showMessage("This picture cannot be read."));
    else await this.send(files, null);
  }

  /** Send files and begin; without any, a synthetic scan is made. @param {Named[]} files
   * @param {PictureRequest | null} picture */
  async send(files, picture) {
    const upload = (this.upload = new AbortController());
    this.total = files.reduce((sum, { file }) => sum + file.size, 0);
    const model = Number(byId("model", HTMLSelectElement).value);
    let job = 0;
    try {
      job = await createJob(this.total);
      this.follow(job);
      await sendFiles(job, files, upload.signal, showMessage);
      await startJob(job, model, picture, !files.length);
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") return;
      upload.abort(); // of the files that are still sent
      if (job) await endJob(job).catch(() => null);
      await this.goToStart();
      showMessage(explain(error));
    }
  }

  /** Show a job while it goes on. @param {number} id */
  follow(id) {
    this.stop();
    this.job = id;
    this.status = "";
    byId("start", HTMLElement).hidden = true;
    this.stop = followJob(id, (job) => void this.meet(job));
  }

  /** Show a state of a job; its slices are shown once it is known what its model does. @param {Job} job */
  async meet(job) {
    if (job.has_case && !this.server.models) await (this.asking ??= this.askServer());
    if (job.id === this.job) this.show(job);
  }

  async askServer() {
    try {
      this.server = await getServer();
    } catch (error) {
      showMessage(explain(error));
    }
    this.asking = null;
  }

  /** @param {Job} job */
  show(job) {
    byId("job", HTMLElement).hidden = false;
    byId("case-name", HTMLElement).textContent = document.title = clean(job.name);
    showJob(job, this.total, (index) => void chooseScan(job.id, index).catch((error) => showMessage(explain(error))));
    if (job.status !== this.status) {
      this.status = job.status;
      byId("job-live", HTMLElement).textContent =
        job.answer && job.status === "done" ? job.answer.headline : describeWork(job, this.total)[0];
    }
    if (job.failure) {
      showMessage(cut(job.failure, LONGEST_REASON));
      byId("main", HTMLElement).hidden = true;
    } else if (job.has_case && this.shown !== job.id && this.server.models) {
      this.shown = job.id;
      this.resetThreshold(this.server.models[job.model]);
      byId("main", HTMLElement).hidden = false;
      this.viewer.setWindow(this.server.models[job.model]?.judges_candidates ? LUNG : PRESETS[0][1]);
      void this.viewer.open(job.id);
    }
    void this.candidates.show(job);
    document.body.classList.toggle("no-size", !job.has_pixel_size);
    byId("job", HTMLElement).role = byId("main", HTMLElement).hidden ? "main" : "region";
    const model = this.server.models?.[job.model];
    const isReady = job.answer !== null && job.has_case;
    byId("threshold-box", HTMLElement).hidden = !isReady || !model?.gives_probability;
    byId("threshold-note", HTMLElement).hidden = !isReady || !job.threshold_note;
    byId("threshold-note", HTMLElement).textContent = job.threshold_note;
  }

  /** Show that the threshold was not moved. @param {import("./jobs_api.js").Model | undefined} model */
  resetThreshold(model) {
    this.slider.value = "50";
    const shown = model?.judges_candidates ? "the mask of the segmentation" : "the answer";
    byId("threshold-text", HTMLElement).textContent = `not moved: ${shown} is shown`;
  }

  /** Show a candidate in its slice. @param {import("./nodules.js").Candidate} one */
  showCandidate({ x_mm, y_mm, z_mm, slice }) {
    if (!this.viewer.info) return;
    const voxel = toVoxelOf(this.viewer.info.affine_lps, [x_mm, y_mm, z_mm]);
    this.viewer.moveTo({ ...voxel, z: slice });
    byId("main", HTMLElement).scrollIntoView({ block: "start" });
  }

  /** Show the lesions of another threshold. @param {number} percent */
  moveThreshold(percent) {
    if (byId("threshold-box", HTMLElement).hidden) return;
    this.slider.value = String(percent);
    const value = this.slider.valueAsNumber;
    byId("threshold-text", HTMLElement).textContent = `${value} %, before the model's rules`;
    this.viewer.setThreshold(Math.ceil((value * 255) / 100));
  }

  /** Stop and remove a job. @param {number} id */
  async remove(id) {
    this.upload.abort();
    if (id === this.job) this.viewer.close();
    showMessage("");
    await endJob(id).catch((error) => error.status !== 404 && showMessage(explain(error)));
    await this.goToStart();
  }
}

async function start() {
  connectTheme();
  try {
    await startSession();
    const page = new Page(await getServer());
    await page.goToStart();
    await page.waitForModels();
  } catch (error) {
    showMessage(explain(error));
  }
}

void start();

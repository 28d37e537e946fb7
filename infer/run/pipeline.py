"""Pipeline: scans -> segmentations, reports and pictures, in bulk.

1. `gather` names the jobs. Jobs done before with the same model and unchanged input are skipped
   (`slicemill.infer.run.ledger`).
2. The engine reads, labels and writes (`slicemill.infer.run.engine`). Each job is claimed first, so that several runs
   may share a folder.
3. The files of an earlier run of a scan are removed. Its mask appears last, atomically, after its report and picture;
   then its line in the ledger. Masks and probability maps name the hash of their model.
4. A scan that cannot be read or written is a failure with a reason; the others continue.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slicemill.common.disk import require_space
from slicemill.common.documents import to_document
from slicemill.common.errors import ProviderError, ReadError
from slicemill.common.failures import explain_failure
from slicemill.common.files import sha256_of_file, write_json
from slicemill.common.left_out import LeftOut
from slicemill.common.progress import Advance, progress
from slicemill.common.terminal import count_noun
from slicemill.ct.formats.dicom_objects.results import SegmentedScan
from slicemill.ct.formats.nifti.header import sign_header
from slicemill.ct.formats.nifti.write import write_volume
from slicemill.ct.pictures import save_png
from slicemill.infer.candidates.judge import CandidateJudge
from slicemill.infer.candidates.page import write_candidate_page, write_run_page
from slicemill.infer.candidates.records import ENDING as CANDIDATES
from slicemill.infer.candidates.records import PAGE_ENDING, ScanCandidates, read_scans, write_candidate_tables
from slicemill.infer.inputs.dicom import require_series
from slicemill.infer.inputs.jobs import Job, LoadedScan, Stamp, open_scan
from slicemill.infer.network.classifier import Classifier
from slicemill.infer.network.lanes import estimate_lane_memory
from slicemill.infer.network.model import Model
from slicemill.infer.parity_check import check_parity
from slicemill.infer.postprocess import postprocess
from slicemill.infer.report import draw_overlay, make_report
from slicemill.infer.run.buffers import BufferPool
from slicemill.infer.run.dicom_results import add_dicom, find_mask, write_dicom
from slicemill.infer.run.engine import Engine, Limits, ScanInProgress, Steps
from slicemill.infer.run.extra_volumes import make_extra_volumes
from slicemill.infer.run.folder_claim import claim_folder
from slicemill.infer.run.ledger import RunLedger
from slicemill.infer.run.options import (
    MAX_READERS,
    MAX_WRITERS,
    InferOptions,
    count_threads,
    estimate_output_bytes,
    estimate_scan_bytes,
    memory_for_scans,
)
from slicemill.infer.run.outputs import check_output_paths, extra_names, extra_path, volume_names
from slicemill.infer.run.summary import ScanOutcome, Summary, write_summary
from slicemill.infer.run.timing import Stopwatch
from slicemill.infer.runtime.capacity import HOSTS, batch_capacity
from slicemill.infer.slices.assembly import labels_in_range, plan_scan, select_outputs
from slicemill.infer.slices.batches import NetworkScan

DEFAULTS = InferOptions()
CLAIMED_ELSEWHERE = "another run has claimed it"


def select_jobs(
    jobs: Sequence[Job], ledger: RunLedger, extras: Sequence[str] = ()
) -> tuple[list[Job], list[ScanOutcome]]:
    """Return the jobs that are left to do, and the outcomes of the others.

    Parameters
    ----------
    extras
        Name endings of the files next to each mask (`extra_names`).

    Raises
    ------
    ScanError
        An output would replace an input or another output.
    """
    check_output_paths(jobs, ledger.out, extras, ledger.names)
    outcomes = [(job, ledger.find_outcome(job)) for job in jobs]
    return [job for job, known in outcomes if known is None], [known for _, known in outcomes if known is not None]


@dataclass(frozen=True, slots=True)
class _ClaimedScan:
    """A scan that this run has claimed and not finished."""

    claim: contextlib.ExitStack
    stamp: Stamp
    """Version tag of the scan's content when it was read."""


class BulkRun:
    """Reads, writes and records the scans of one run; called from several threads."""

    def __init__(
        self, model: Model, options: InferOptions, ledger: RunLedger, judge: CandidateJudge | None = None
    ) -> None:
        self._model = model
        self._judge = judge
        check_devices(model, options.devices)
        self._options = options
        self._in_range = labels_in_range(model.info, options.z_range, options.predict, postprocess=options.postprocess)
        self._ledger = ledger
        self._watch = Stopwatch()
        self._buffers = BufferPool()
        self._advance: Advance = lambda *_: None
        self._lock = threading.Lock()
        self._claimed: dict[str, _ClaimedScan] = {}
        self._slices = 0
        self.on_outcome: Callable[[ScanOutcome], None] = lambda _: None
        """Called when a scan ends."""
        self._is_over = False
        self.outcomes: dict[str, ScanOutcome] = {}
        """Outcome of each scan that has ended, by name."""

    def run(self, jobs: Iterator[Job], total: int) -> None:
        """Segment every job on every device; `total` is the number of jobs, or 0 where it is unknown.

        Raises
        ------
        ModelError
            A device's labels differ from the CPU's on its first scan.
        ProviderError
            A device failed twice.
        """
        info, options = self._model.info, self._options
        capacity = batch_capacity(info, self._model.provider, options.batch)
        outputs = select_outputs(info, options.predict)
        lanes_bytes = estimate_lane_memory(self._model, capacity, outputs) if options.max_memory_gb else 0
        limits = Limits(
            capacity=capacity,
            outputs=outputs,
            memory_bytes=memory_for_scans(options.max_memory_gb, lanes_bytes),
            readers=count_threads(options.readers, MAX_READERS),
            writers=count_threads(options.writers, MAX_WRITERS),
        )
        check = None if self._model.provider == "cpu" else check_parity
        steps = Steps(read=self.read, write=self.write, fail=self.fail, check=check, advance=self.count_labeled)
        with self._release_claims(), progress("infer", total, "scans", quiet=not total) as self._advance:
            Engine(open_models(self._model, options.devices), limits, steps, self._watch).run(jobs)

    @contextlib.contextmanager
    def _release_claims(self) -> Iterator[None]:
        """At the end, release the claims of scans that an error of the run left unfinished."""
        try:
            yield
        finally:
            self._is_over = True
            for claimed in list(self._claimed.values()):
                claimed.claim.close()

    def is_in_progress(self, name: str) -> bool:
        """Return whether a scan has begun and not ended."""
        return name in self._claimed

    def summarize(self, names: Sequence[str]) -> Summary:
        """Return the summary of the run so far for scans of these names."""
        watch = self._watch
        if self._model.provider == "cpu":
            busy = watch.seconds("device") / self._model.lanes
        else:
            busy = watch.busy_seconds / len(self._options.devices)
        return Summary(
            outcomes=tuple(self.outcomes.get(name) or make_unreached_outcome(name) for name in names),
            seconds=self._watch.elapsed,
            provider=self._model.provider,
            stages=self._watch.stage_times(),
            device_busy=busy / watch.elapsed,
        )

    def read(self, job: Job, reserve_memory: Callable[[int], None]) -> ScanInProgress | None:
        """Claim a job and read its scan; return None if there is nothing to do.

        Raises
        ------
        InputError
            The file cannot be read as a CT scan, or it needs more memory than scans may take.
        """
        claim = self._ledger.claim(job)
        if claim is None:
            self._end(job, ScanOutcome(name=job.name, status="skipped", reason=CLAIMED_ELSEWHERE))
            return None
        stamp = job.stamp()
        self._claimed[job.name] = _ClaimedScan(claim, stamp)
        if (known := self._ledger.update_outcome(job)) is not None:
            self._end(job, known)
            return None
        with open_scan(job) as scan:
            require_series(scan, self._options.dicom)
            shape, spacing_mm = scan.grid.stored_shape, scan.grid.spacing_mm
            plan = plan_scan(self._model.info, shape, spacing_mm, self._options.predict, in_range=self._in_range)
            memory_bytes = estimate_scan_bytes(plan)
            reserve_memory(memory_bytes)
            if (made := find_mask(self._ledger, job, self._model.info)) is not None:
                self._end(job, add_dicom(self._ledger, job, scan, stamp, made))
                self._advance(1, "DICOM results of masks that exist")
                return None
            volumes = [
                job.name,
                *(extra_path(job, name) for name in volume_names(self._model.info.labels, self._options)),
            ]
            require_space(self._ledger.out, estimate_output_bytes(plan, volumes), "its mask")
            with self._watch.timed("decode"):
                voxels = scan.read(self._buffers.empty)
                loaded = scan.load(voxels, self._model.info.training_scans, strict=self._options.strict)
                seen = plan.resample(voxels.volume)
            if job.stamp() != stamp:
                raise ReadError("changed while it was read; the next run segments it again.", where=job.path)
            self._watch.add("read", voxels.read_seconds)
            self._watch.add("decode", -voxels.read_seconds)
        network_scan = NetworkScan(plan, seen, self._buffers.empty)
        return ScanInProgress(job=job, loaded=loaded, scan=network_scan, memory_bytes=memory_bytes)

    def write(self, current: ScanInProgress) -> None:
        """Write report, picture and mask of a scan, and its line in the ledger."""
        job, loaded, out, info = current.job, current.loaded, self._ledger.out, self._model.info
        segmentation = current.scan.assembly.result()
        self.count_labeled(current, (len(loaded.volume) - segmentation.labeled) * len(current.scan.plan.tiles))
        with self._watch.timed("candidates"):  # before post-processing, which takes lumps away
            candidates = None if self._judge is None else self._judge.judge(loaded, segmentation, job.name)
        with self._watch.timed("post"):
            if self._options.postprocess:
                probability = segmentation.tumor_probability
                postprocess(segmentation.label, info.labels, info.rules, loaded.grid, probability, loaded.volume)
        with self._watch.timed("report"):
            report = make_report(self._model, loaded, segmentation, job.name)
            answer = self._choose_answer(report.answer, loaded, candidates)
            title = f"{job.stem}  {answer}" + ("  WARNING, see the report" if report.warnings else "")
            picture = draw_overlay(loaded.volume, segmentation.label, info.labels, report.lesions, title)
        outcome = ScanOutcome(
            name=job.name,
            status="done",
            slices=len(loaded.volume),
            labeled=segmentation.labeled,
            answer=answer,
            warnings="; ".join([*report.warnings, *(candidates.warnings if candidates is not None else ())]),
        )
        with self._watch.timed("write"):
            stamp = self._claimed[job.name].stamp
            self._ledger.append(job, outcome, stamp=stamp, begun=True)
            self._ledger.remove_earlier(job)
            header = sign_header(loaded.header, info.sha256)
            write_json(out / f"{job.stem}.json", to_document(report))
            if candidates is not None:
                write_json(out / extra_path(job, CANDIDATES), to_document(candidates))
                self._write_candidate_page(job, loaded, candidates)
            save_png(out / f"{job.stem}.png", picture)
            for extra in make_extra_volumes(info.labels, segmentation, self._options):
                path = out / extra_path(job, extra.name)
                write_volume(path, header, np.uint8, loaded.grid.to_file(extra.volume), slope=extra.slope)
            if loaded.series is not None:
                scan = SegmentedScan(
                    label=segmentation.label,
                    labels=info.labels,
                    image=loaded.volume,
                    probability=segmentation.tumor_probability,
                )
                write_dicom(out / job.stem, loaded.series, scan, info, self._options.dicom)
            write_volume(out / job.name, header, np.uint8, loaded.grid.to_file(segmentation.label))
            sha256 = "" if loaded.series is None else sha256_of_file(out / job.name)
            self._ledger.append(job, outcome, stamp=stamp, mask_sha256=sha256)
        self._end(job, outcome)

    def _choose_answer(self, of_mask: str, loaded: LoadedScan, candidates: ScanCandidates | None) -> str:
        """Return the main result of a scan: that of its candidates if a classifier judged them; it judges no mask."""
        is_judged = self._judge is not None and self._judge.judges(loaded)
        return candidates.answer if is_judged and candidates is not None else of_mask

    def _write_candidate_page(self, job: Job, loaded: LoadedScan, candidates: ScanCandidates) -> None:
        if self._options.has_candidate_pages:
            path, name = self._ledger.out / extra_path(job, PAGE_ENDING), job.short_name or job.stem
            affine, most_mb = loaded.grid.affine_lps, self._options.viewer_mb
            write_candidate_page(path, name, candidates, loaded.volume, affine, most_mb)

    def fail(self, job: Job, error: Exception) -> None:
        """Record the reason of a scan's failure; on a full disk, only the summary records it."""
        if self._is_over:  # a reader that outlived the run: another run may have the scan by now
            return
        failure = explain_failure(error, job.path, fewer="--readers")
        outcome = ScanOutcome(name=job.name, status="failed", reason=failure.reason, passing=failure.passing)
        claimed = self._claimed.get(job.name)
        with contextlib.suppress(OSError):
            self._ledger.append(job, outcome, stamp=claimed.stamp if claimed else None)
        self._end(job, outcome)

    def count_labeled(self, current: ScanInProgress, count: int) -> None:
        """Show that `count` more slices or tiles of a scan are done: labeled, or outside of the organ's range."""
        units = len(current.loaded.volume) * len(current.scan.plan.tiles)
        with self._lock:
            self._slices += count
            failed = sum(outcome.status == "failed" for outcome in self.outcomes.values())
            self._advance(count / units, f"{self._slices / self._watch.elapsed:,.1f} slices/s, {failed} failed")

    def _end(self, job: Job, outcome: ScanOutcome) -> None:
        with self._lock:
            self.outcomes[job.name] = outcome
            claimed = self._claimed.pop(job.name, None)
        if claimed is not None:
            claimed.claim.close()
        self.on_outcome(outcome)


def describe_device(model: Model, options: InferOptions) -> str:
    """Return a description of provider, devices and batch size, with the reason for that provider."""
    numbers = ", ".join(map(str, options.devices))
    device = count_noun(len(os.sched_getaffinity(0)), "core") if model.provider in HOSTS else f"GPU {numbers}"
    batch = batch_capacity(model.info, model.provider, options.batch).labels
    return f"{model.provider} ({device}), {count_noun(batch, 'slice')} a batch, {model.lanes} at a time: {model.reason}"


def check_devices(model: Model, devices: Sequence[int]) -> None:
    """Check that several devices are requested only for a GPU; the processor is one device.

    Raises
    ------
    ProviderError
        Several devices are requested.
    """
    if len(devices) > 1 and model.provider in HOSTS:
        numbers = ",".join(map(str, devices))
        raise ProviderError(f"--device {numbers}: {model.provider} runs on one device, the processor ({model.reason}).")


def open_models(model: Model, devices: Sequence[int]) -> list[Model]:
    """Return a model for each device; the first is `model`, which is open already."""
    return [model, *(model.on_device(device) for device in devices[1:])]


def make_unreached_outcome(name: str) -> ScanOutcome:
    """Return the outcome of a scan that was not reached before the run ended."""
    return ScanOutcome(name=name, status="failed", reason="the run ended before this scan was reached", passing=True)


def infer(
    model: Model,
    jobs: Sequence[Job],
    out: Path,
    options: InferOptions = DEFAULTS,
    left_out: Sequence[LeftOut] = (),
    classifier: Classifier | None = None,
) -> Summary:
    """Segment scans into a folder; a repeated call does only what is left.

    Parameters
    ----------
    left_out
        Files of the input that are not segmented, with reasons, for the summary.
    classifier
        Judges the candidates of each scan; its hash is in the options. None: see `InferOptions.candidates`.

    Raises
    ------
    ConfigError
        Another run writes results of another model, or with other options, into the folder, or the model outputs no
        probability of tumor, which candidates need.
    ModelError
        The provider's labels differ from the CPU's on the first scan's slices.
    ProviderError
        The device failed twice.
    """
    judge = None
    if options.has_candidates:
        judge = CandidateJudge(model.info, classifier, mirrored=options.predict.mirror)
    out.mkdir(parents=True, exist_ok=True)
    with claim_folder(out, model.info.sha256, options):
        ledger = RunLedger(out, model, options)
        run = BulkRun(model, options, ledger, judge)
        ledger.remove_unfinished(jobs)
        left, known = select_jobs(jobs, ledger, extra_names(model.info.labels, options))
        run.outcomes.update({outcome.name: outcome for outcome in known})
        try:
            run.run(iter(left), len(left))
        finally:
            summary = replace(run.summarize([job.name for job in jobs]), left_out=tuple(left_out))
            write_summary(out, model, summary, options.part)
            if judge is not None:
                names = {one.name for one in summary.outcomes if one.status != "failed" and is_ours(one)}
                in_table = {job.stem: job.short_name or job.stem for job in jobs if job.name in names}
                scans = read_scans(out, in_table)
                write_candidate_tables(out, scans, options.part)
                stems = {name: stem for stem, name in in_table.items()}
                write_run_page(out / f"candidates{options.part}.html", scans, stems)
    return summary


def is_ours(outcome: ScanOutcome) -> bool:
    """Return whether a scan's files are those of this model and these options, whichever run wrote them."""
    return outcome.reason != CLAIMED_ELSEWHERE

"""Arguments and options of the command `infer`, and the settings derived from them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slicemill.common.errors import ScanError, UsageError
from slicemill.common.options import INPUT, MACHINE, NETWORK, OUTPUT, RERUN, Json, parse_shard, require_finite
from slicemill.ct.page_options import VIEWER_MB

if TYPE_CHECKING:
    from slicemill.common.left_out import LeftOut
    from slicemill.ct.formats.dicom_objects.options import DicomOptions
    from slicemill.infer.inputs.jobs import Job
    from slicemill.infer.network.classifier import Classifier
    from slicemill.infer.network.model import Model
    from slicemill.infer.run.options import InferOptions
    from slicemill.infer.run.summary import Summary

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
"""The choices of `slicemill.infer.runtime.providers.Provider`, a module that is too slow to import for --help."""


def _option(panel: str | None, help_text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **settings)


_common, _input, _output, _network, _machine, _rerun = (
    partial(_option, panel) for panel in (None, INPUT, OUTPUT, NETWORK, MACHINE, RERUN)
)
FROM_0: dict[str, Any] = {"min": 0}
FINITE_FROM_0: dict[str, Any] = {"min": 0, "callback": require_finite}

ModelFile = Annotated[Path, typer.Argument(help="ONNX file written by slicemill export.")]
Models = Annotated[Path, typer.Argument(help="ONNX file written by slicemill export, or NAME.nodules.")]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(help="Scans (NIfTI, MetaImage, NRRD), folders, quoted patterns, slice stores; paths or URLs."),
]
ProviderName = Annotated[
    Provider, _common("Where the network runs; auto: CUDA if it starts, OpenVINO for bfloat16, else CPU.")
]


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """Arguments and options of the command `infer`."""

    model: Models
    inputs: Inputs = None
    lists: Annotated[list[str] | None, _input("File with one input per line; - is standard input.", "--list")] = None
    watch: Annotated[Path | None, _input("Segment scans that arrive in this folder, until Ctrl-C or SIGTERM.")] = None
    settle: Annotated[
        float, _input("Seconds without changes after which a new file counts as complete.", **FINITE_FROM_0)
    ] = 5.0
    window: Annotated[str | None, _input("LOW,HIGH: HU of black and white in PNG or JPEG inputs.")] = None
    strict: Annotated[bool, _input("Refuse scans with a warning, like a lost header.", "--strict")] = False
    out: Annotated[Path | None, _common("Folder for results; default: FOLDER-MODEL next to the scans' folder.")] = None
    classifier: Annotated[
        Path | None, _network("Judge the segmentation's candidates with this model; writes candidates.csv and .json.")
    ] = None
    candidates: Annotated[
        bool,
        _output(
            "Write candidates.csv and .json without --classifier: lumps of the probability of tumor with its mean.",
            "--candidates",
        ),
    ] = False
    viewer_mb: Annotated[
        float,
        _output(
            "MiB of pictures in the page of each scan's candidates, NAME.candidates.html; 0 for no pages.",
            **FINITE_FROM_0,
        ),
    ] = VIEWER_MB
    probability: Annotated[bool, _output("Also write NAME_probability_LABEL for every label.", "--probability")] = False
    separate: Annotated[bool, _output("Also write NAME_LABEL for every label, as 0 and 1.", "--separate")] = False
    no_postprocess: Annotated[bool, _output("Do not post-process the labels.", "--no-postprocess")] = False
    dicom_seg: Annotated[bool, _output("For DICOM series, also write NAME.seg.dcm (DICOM SEG).", "--dicom-seg")] = False
    dicom_sr: Annotated[
        bool,
        _output("Also write NAME.sr.dcm, a DICOM report of the lesions, and a SEG with a segment each.", "--dicom-sr"),
    ] = False
    rtstruct: Annotated[bool, _output("Also write NAME.rtstruct.dcm (DICOM RTSTRUCT).", "--rtstruct")] = False
    seg_type: Annotated[Literal["binary", "labelmap"], _output("Kind of SEG; labelmap is smaller, but new (2024).")] = (
        "binary"
    )
    seg_per_lesion: Annotated[bool, _output("Make each lesion a segment of its own.", "--seg-per-lesion")] = False
    rtstruct_holes: Annotated[
        Literal["keyhole", "xor"], _output("How RTSTRUCT has holes: one joined outline, or outlines of their own.")
    ] = "keyhole"
    codes: Annotated[Path | None, _output("CSV of codes for labels: label, category, type, region.")] = None
    provider: ProviderName = "auto"
    z_range: Annotated[
        Literal["auto", "organ", "all"],
        _network(
            "Slices to label: all, or the organ's range, where only the largest organ is kept; auto: that if possible.",
            "--range",
        ),
    ] = "auto"
    mirror: Annotated[
        bool,
        _network(
            "Average over each slice and its mirror image; takes twice as long. A classifier may ask for it.",
            "--mirror",
        ),
    ] = False
    overlap: Annotated[
        bool, _network("Average over tiles that overlap by half, if slices need tiles.", "--overlap")
    ] = False
    batch: Annotated[int, _network("Slices per batch; 0: chosen for the provider.", **FROM_0)] = 0
    readers: Annotated[int, _machine("Threads that decode scans; 0: by the number of cores.", **FROM_0)] = 0
    writers: Annotated[int, _machine("Threads that post-process and write; 0: by the number of cores.", **FROM_0)] = 0
    devices: Annotated[str, _machine("Numbers of the GPUs to use, like 0,1.", "--device")] = "0"
    max_memory: Annotated[
        float, _machine("Memory limit of the process, GB; 0: scans may use half of the free memory.", **FINITE_FROM_0)
    ] = 0.0
    shard: Annotated[str | None, _machine("I/N: every Nth scan from the Ith on; for job arrays.")] = None
    scheduler: Annotated[str | None, _machine("Dask scheduler, like tcp://host:8786; one worker per device.")] = None
    retry_failed: Annotated[bool, _rerun("Try scans that failed before again.", "--retry-failed")] = False
    overwrite: Annotated[bool, _rerun("Segment finished scans again.", "--overwrite")] = False
    dry_run: Annotated[bool, _common("Show what would be segmented, and stop.", "--dry-run")] = False
    json: Json = False

    @cached_property
    def all_inputs(self) -> list[str]:
        """Return the inputs, including those in lists; standard input is read once."""
        from slicemill.infer.inputs.gather import read_list

        return [*(self.inputs or []), *(line for path in self.lists or [] for line in read_list(path))]

    @cached_property
    def out_folder(self) -> Path:
        """Return the folder for masks, reports and pictures."""
        return self.out or default_output([str(self.watch)] if self.watch else self.all_inputs, self.model)

    @cached_property
    def shard_of(self) -> tuple[int, int] | None:
        """Return index and number of the shard."""
        return parse_shard(self.shard)

    @cached_property
    def dicom(self) -> "DicomOptions":
        """Return which DICOM results are written."""
        from slicemill.ct.formats.dicom_objects.options import make_options

        return make_options(
            seg=self.dicom_seg,
            sr=self.dicom_sr,
            rtstruct=self.rtstruct,
            seg_type=self.seg_type,
            per_lesion=self.seg_per_lesion,
            holes=self.rtstruct_holes,
            codes=self.codes,
        )

    @cached_property
    def options(self) -> "InferOptions":
        """Return the options of the run."""
        from slicemill.infer.run.options import InferOptions
        from slicemill.infer.slices.tiles import PredictOptions

        return InferOptions(
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
            postprocess=not self.no_postprocess,
            separate=self.separate,
            strict=self.strict,
            dicom=self.dicom,
            z_range="all" if self.has_candidates else self.z_range,  # candidates may lie anywhere
            candidates=self.candidates,
            viewer_mb=self.viewer_mb,
            classifier_sha256="" if self.opened_classifier is None else self.opened_classifier.sha256,
            predict=PredictOptions(mirror=self.mirrors, overlap=self.overlap, probability=self.probability),
            batch=self.batch,
            readers=self.readers,
            writers=self.writers,
            devices=parse_devices(self.devices),
            max_memory_gb=self.max_memory,
            part="" if self.shard_of is None else "-{}-of-{}".format(*self.shard_of),
        )

    @property
    def mirrors(self) -> bool:
        """Return whether slices are mirrored: on request, or because the classifier learned candidates of such ones."""
        return self.mirror or bool(self.opened_classifier is not None and self.opened_classifier.card.mirror)

    @cached_property
    def opened_classifier(self) -> "Classifier | None":
        """Return the classifier, opened; None without one."""
        from slicemill.infer.network.nodules import open_judge

        return open_judge(self.model, self.classifier, self.provider, parse_devices(self.devices)[0])

    @property
    def has_candidates(self) -> bool:
        """Return whether candidates are written: asked for, or judged by a classifier."""
        from slicemill.infer.network.nodules import has_classifier

        return has_classifier(self.model, self.classifier) or self.candidates

    def check(self) -> None:
        """Check that each option is valid and that the options can be combined.

        Raises
        ------
        UsageError
            An option is not valid, or two cannot be combined.
        """
        from slicemill.infer.runtime.capacity import HOSTS

        if self.has_candidates:
            self._check_candidates()
        elif self.viewer_mb != VIEWER_MB:
            raise UsageError("--viewer-mb: pages of candidates need --classifier, --candidates or a file NAME.nodules.")
        devices = self.options.devices
        if self.provider in HOSTS and devices != (0,):
            numbers = ",".join(map(str, devices))
            raise UsageError(f"--device {numbers}: {self.provider} runs on one device, the processor; omit --device.")
        if bool(self.all_inputs) == (self.watch is not None):
            raise UsageError("pass scans, folders, patterns or stores, or a --list of them; or use --watch FOLDER.")
        if self.watch is not None and (self.scheduler or self.shard or self.dry_run or self.window):
            raise UsageError("--watch cannot be combined with --scheduler, --shard, --dry-run or --window.")

    def _check_candidates(self) -> None:
        """Check the options that cannot be combined with candidates."""
        from slicemill.infer.network.nodules import has_classifier

        is_judged = has_classifier(self.model, self.classifier)
        name = "--classifier" if is_judged else "--candidates"
        if self.scheduler or self.watch is not None:
            raise UsageError(f"{name}: cannot be combined with --scheduler or --watch; use --shard on each machine.")
        if self.provider == "tensorrt" and is_judged:
            raise UsageError("--classifier: takes int16, a type that TensorRT does not have; use --provider cuda.")
        if self.z_range == "organ":
            raise UsageError(f"{name}: candidates may lie in every slice; omit --range.")

    def find_jobs(self) -> "tuple[list[Job], list[LeftOut]]":
        """Return the jobs of this shard, and its share of the files that are left out.

        Raises
        ------
        ScanError
            No input exists, so that nothing is written. One that is missing among others is reported as failed.
        """
        from slicemill.infer.inputs.gather import gather
        from slicemill.store.to_slices import parse_window

        jobs, left_out = gather(self.all_inputs, parse_window(self.window) if self.window else None)
        if jobs and not any(job.path.exists() for job in jobs):
            raise ScanError(
                f"there is no such file or folder, nor any other of the {len(jobs)}."
                if len(jobs) > 1
                else "there is no such file or folder.",
                where=jobs[0].path,
            )
        if self.dicom.endings():
            from slicemill.infer.inputs.dicom import require_dicom_jobs

            require_dicom_jobs(jobs, self.dicom)
        first, step = self.shard_of or (0, 1)
        return jobs[first::step], left_out[first::step]

    def open_model(self) -> "Model":
        """Open the model, on the CPU if workers of a scheduler run it.

        Raises
        ------
        ModelError
            The file cannot be read or is not a slicemill model.
        ProviderError
            The provider does not run here.
        """
        from slicemill.infer.network.model import find_provider_file, open_model
        from slicemill.infer.network.nodules import open_segmentation

        batch = self.options.batch
        if self.scheduler:
            return open_model(find_provider_file(self.model, self.provider), "cpu", batch=batch)
        return open_segmentation(self.model, self.provider, self.options.devices[0], batch)

    def run(self, opened: "Model", jobs: "Sequence[Job]", left_out: "Sequence[LeftOut]") -> "Summary":
        """Segment scans that arrive in a folder, or on a cluster, or here."""
        from slicemill.infer.run.ledger import RunLedger

        out, options = self.out_folder, self.options
        if self.watch is not None:
            from slicemill.infer.run.watch import until_signaled, watch

            with until_signaled() as ended:
                return watch(opened, self.watch, RunLedger(out, opened, options), ended, self.settle)
        if self.scheduler is not None:
            from slicemill.infer.run.cluster import infer_on

            return infer_on(self.scheduler, opened, self.provider, jobs, RunLedger(out, opened, options), left_out)
        from slicemill.infer.run.pipeline import infer

        return infer(opened, jobs, out, options, left_out, self.opened_classifier)


def default_output(inputs: Sequence[str], model: Path) -> Path:
    """Return the default folder for results: ``scans-liver`` for ``liver.onnx`` on the folder ``scans`` or files in it.

    Raises
    ------
    UsageError
        The inputs are not one local folder or store, or local files, or nothing can be written next to them.
    """
    from slicemill.common.files import parse_location
    from slicemill.store.model_card import network_name

    locations = [parse_location(one) for one in inputs]
    # abspath, not resolve: links are kept
    local = [Path(os.path.abspath(one)) for one in locations if isinstance(one, Path)]  # noqa: PTH100
    if local and not any(path.is_dir() for path in local):
        local = [Path(os.path.commonpath([path.parent for path in local]))]
    elif len(locations) > 1:
        local = []
    if any(not isinstance(one, Path) for one in locations) or not local or not local[0].is_dir():
        raise UsageError(
            "--out is missing: pass a folder for masks, reports and pictures. Only a local folder, a local store "
            "or local files have a default."
        )
    (folder,) = local
    if not folder.name or os.path.ismount(folder) or not os.access(folder.parent, os.W_OK):
        raise UsageError(
            f"--out is missing: cannot write next to {folder}; pass a folder for masks, reports and pictures."
        )
    return folder.with_name(f"{folder.name}-{network_name(model)}")


def parse_devices(text: str) -> tuple[int, ...]:
    """Parse numbers of GPUs.

    >>> parse_devices("0, 1")
    (0, 1)

    Raises
    ------
    UsageError
        The text is not a list of numbers.
    """
    if not all(number.strip().isdecimal() for number in text.split(",")):
        raise UsageError(f"--device {text}: expected numbers of GPUs, each once, like 0,1.")
    return tuple(int(number) for number in text.split(","))

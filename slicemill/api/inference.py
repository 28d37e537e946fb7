"""The command `infer` as a function, which returns its record."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.common.extras import name_missing_extras
from slicemill.common.files import Location
from slicemill.ct.page_options import VIEWER_MB

if TYPE_CHECKING:
    from slicemill.ct.formats.dicom_objects.options import Holes, SegmentationType
    from slicemill.infer.run.summary import Summary
    from slicemill.infer.runtime.providers import Provider
    from slicemill.infer.slices.assembly import RangeChoice


@name_missing_extras()
def infer_scans(
    model: str | Path,
    inputs: str | Location | Sequence[str | Location],
    out: str | Path,
    *,
    window: str | None = None,
    strict: bool = False,
    classifier: str | Path | None = None,
    candidates: bool = False,
    viewer_mb: float = VIEWER_MB,
    probability: bool = False,
    separate: bool = False,
    no_postprocess: bool = False,
    dicom_seg: bool = False,
    dicom_sr: bool = False,
    rtstruct: bool = False,
    seg_type: "SegmentationType" = "binary",
    seg_per_lesion: bool = False,
    rtstruct_holes: "Holes" = "keyhole",
    codes: str | Path | None = None,
    provider: "Provider" = "auto",
    z_range: "RangeChoice" = "auto",
    mirror: bool = False,
    overlap: bool = False,
    batch: int = 0,
    readers: int = 0,
    writers: int = 0,
    devices: str | Sequence[int] = "0",
    max_memory: float = 0.0,
    shard: str | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
) -> "Summary":
    """Segment scans in bulk, and write masks, reports and pictures; a repeated call does only what is left.

    The options are those of the command `slicemill infer`; `slicemill.infer.request.InferRequest` explains each. For
    labels in memory, without files, use `Model`.

    Parameters
    ----------
    model
        ONNX file of `slicemill export`.
    inputs
        A scan, a folder, a pattern like ``scans/*.nii.gz``, a slice store, a URL, or several of them.
    out
        Folder for masks, reports, pictures and the summary.
    classifier
        Model of kind `crops` that judges the candidates of the segmentation.
    candidates
        Writes the candidates without a classifier, too; their probability is the segmentation's mean.
    viewer_mb
        MiB of pictures in the page of each scan's candidates; 0 for no pages.
    dicom_seg, dicom_sr, rtstruct
        DICOM results of inputs in DICOM: SEG, a report of the lesions, RTSTRUCT. The options after them say how.
    provider
        Where the network runs: auto, cpu, cuda, tensorrt or openvino. ``auto`` is CUDA if it starts, OpenVINO
        where it computes in bfloat16 and labels alike, else the CPU.
    z_range
        Slices to label: ``all``, or the ``organ``'s range; ``auto``: that if possible.
    devices
        Numbers of the GPUs to use.
    max_memory
        Memory limit of the process, GB; 0 lets scans use half of the free memory.

    Returns
    -------
    Summary
        An outcome for every scan: done, skipped (done before) or failed with a reason (`failures`), and the files left
        out. A scan that fails raises nothing.

    Raises
    ------
    ScanError
        None of the inputs exists.
    ModelError
        The model cannot be used, or its labels differ from the CPU's.
    ProviderError
        The provider does not run here.
    ConfigError
        The folder has results of another model or of other options.
    UsageError
        Options are not valid, or exclude each other.

    >>> summary = slicemill.infer_scans("liver.onnx", "scans", "segmented")          # doctest: +SKIP
    >>> summary.count("done"), [one.reason for one in summary.failures]              # doctest: +SKIP
    (131, [])
    """
    from slicemill.infer.request import InferRequest

    request = InferRequest(
        model=Path(model),
        inputs=[str(one) for one in ([inputs] if isinstance(inputs, str | Location) else inputs)],
        out=Path(out), window=window, strict=strict, classifier=None if classifier is None else Path(classifier),
        candidates=candidates, viewer_mb=viewer_mb, probability=probability, separate=separate,
        no_postprocess=no_postprocess, dicom_seg=dicom_seg, dicom_sr=dicom_sr, rtstruct=rtstruct, seg_type=seg_type,
        seg_per_lesion=seg_per_lesion, rtstruct_holes=rtstruct_holes, codes=None if codes is None else Path(codes),
        provider=provider, z_range=z_range, mirror=mirror, overlap=overlap, batch=batch,
        readers=readers, writers=writers, devices=devices if isinstance(devices, str) else ",".join(map(str, devices)),
        max_memory=max_memory, shard=shard, scheduler=scheduler, retry_failed=retry_failed, overwrite=overwrite,
    )  # fmt: skip
    request.check()
    jobs, left_out = request.find_jobs()
    return request.run(request.open_model(), jobs, left_out)

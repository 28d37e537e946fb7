"""A model that stays open, for scans in Python."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, overload

import numpy.typing as npt

from slicemill.api.scans import Axes, Scan, ScanInput, read_input
from slicemill.api.segmentation import Segmentation
from slicemill.common.errors import InputError
from slicemill.ct.labels import Labels
from slicemill.infer.network.model import open_model
from slicemill.infer.runtime.providers import Provider
from slicemill.infer.single import Watch, count_units
from slicemill.infer.single import segment as run
from slicemill.infer.slices.assembly import select_outputs
from slicemill.infer.slices.tiles import PredictOptions
from slicemill.store.model_card import ModelCard


class Model:
    """An opened model file. It segments one scan at a time, and stays open between them.

    For a folder of scans use the command `infer`: it reads, segments and writes several scans at once, skips finished
    ones and continues after a kill.

    Parameters
    ----------
    path
        ONNX file of `slicemill export`.
    provider
        Where the network runs: auto, cpu, cuda, tensorrt or openvino. ``auto`` is CUDA if it starts, OpenVINO
        where it computes in bfloat16 and labels alike, else the CPU. A provider that was
        named and does not start is an error. On another device than the CPU, the labels of the first scan's middle
        slices are compared with the CPU's.
    device
        Number of the GPU.
    mirror
        Average over each slice and its mirror image; takes twice as long.
    overlap
        Average over tiles that overlap by half, if slices need tiles.
    probability
        Keep the probability of every label. By default they are kept if the model outputs them; they take a byte per
        voxel and label.
    strict
        Refuse scans with a warning: about the header, or HU that do not look like a CT's. By default they are
        segmented, and the warnings are in the report.

    Raises
    ------
    ModelError
        The file cannot be read or is not a slicemill model.
    ProviderError
        The provider does not run here.
    ConfigError
        `mirror`, `overlap` or `probability` needs probabilities, which the model does not output.

    >>> import slicemill
    >>> model = slicemill.Model("liver.onnx", provider="cpu")        # doctest: +SKIP
    >>> result = model.segment("ct.nii.gz")                          # doctest: +SKIP
    >>> result.report.tumor_volume_ml, len(result.lesions)           # doctest: +SKIP
    (3.21, 2)
    >>> result.save("ct-label.nii.gz")                               # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        *,
        provider: Provider = "auto",
        device: int = 0,
        mirror: bool = False,
        overlap: bool = False,
        probability: bool | None = None,
        strict: bool = False,
    ) -> None:
        self._model = open_model(Path(path), provider, device)
        self._strict = strict
        keep = self._model.info.gives_probability if probability is None else probability
        self._predict = PredictOptions(mirror=mirror, overlap=overlap, probability=keep)
        select_outputs(self._model.info, self._predict)

    def __repr__(self) -> str:
        return f"<model {self._model.info.name} on {self.provider}: {', '.join(self.labels.values)}>"

    @property
    def provider(self) -> str:
        """Return the execution provider that runs the network."""
        return self._model.provider

    @property
    def labels(self) -> Labels:
        """Return names and values of the labels, and which of them are organ and tumor."""
        return self._model.info.labels

    @property
    def card(self) -> ModelCard:
        """Return the metadata of the file: window, context, spacing, training, versions and license."""
        return self._model.info.card

    def segment(
        self,
        scan: Scan,
        *,
        spacing: Sequence[float] | None = None,
        affine: npt.ArrayLike | None = None,
        axes: Axes | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Segmentation:
        """Segment one scan.

        Parameters
        ----------
        scan
            A NIfTI file or its URL, a case of a store, a NIfTI image of nibabel, an image of SimpleITK, or an array of
            3 axes, HU. Voxels may be integers or floats; they are rounded to whole HU.
        spacing
            For an array: size of a voxel along the array's axes in their order, mm. The array is then taken to be in
            LPS+ order (``zyx-lps``) or RAS+ order (``xyz-ras``).
        affine
            For an array, instead of spacing: float[4, 4], voxel (i, j, k, 1) to mm.
        axes
            For an array, required: ``xyz-ras`` for array[i, j, k] and an affine to RAS mm (nibabel, MONAI, TorchIO), or
            ``zyx-lps`` for array[k, j, i] and an affine to LPS mm (SimpleITK, slicemill).
        progress
            Called with the share of the scan that is labeled, 0 to 1; from another thread.

        Raises
        ------
        InputError
            The scan cannot be read as a CT; the message has the reason.
        UsageError
            The axes or the voxel size of an array are missing.
        ModelError
            The provider's labels differ from the CPU's.

        >>> model.segment(nibabel.load("ct.nii.gz")).to_nibabel()                          # doctest: +SKIP
        >>> model.segment(hu, spacing=(5.0, 0.8, 0.8), axes="zyx-lps").label.shape         # doctest: +SKIP
        >>> model.segment(slicemill.open_store("lits-store")["volume-17"]).lesions         # doctest: +SKIP
        """
        trained = self._model.info.training_scans
        source = read_input(scan, spacing=spacing, affine=affine, axes=axes, strict=self._strict, trained=trained)
        return self._segment(source, progress or _ignore)

    @overload
    def segment_many(
        self,
        scans: Iterable[Scan],
        *,
        progress: Callable[[int, float], None] | None = None,
        errors: Literal["raise"] = "raise",
    ) -> Iterator[Segmentation]: ...

    @overload
    def segment_many(
        self,
        scans: Iterable[Scan],
        *,
        progress: Callable[[int, float], None] | None = None,
        errors: Literal["return"],
    ) -> Iterator[Segmentation | InputError]: ...

    def segment_many(
        self,
        scans: Iterable[Scan],
        *,
        progress: Callable[[int, float], None] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Segmentation | InputError]:
        """Segment scans one after the other, and yield the result of each; one scan is in memory at a time.

        Parameters
        ----------
        scans
            Scans as `segment` takes them, but no arrays, which need their axes. Consumed one by one.
        progress
            Called with the index of the scan and the share of it that is labeled, 0 to 1; from another thread.
        errors
            What happens to a scan that cannot be segmented: ``raise`` ends the iteration with its error, ``return``
            yields the error in its place and goes on.

        Raises
        ------
        InputError
            A scan cannot be segmented, unless `errors` is ``return``.

        >>> for result in model.segment_many(sorted(Path("scans").glob("*.nii.gz"))):       # doctest: +SKIP
        ...     print(result.report.scan, result.report.answer)
        """
        report = progress or _ignore
        for index, scan in enumerate(scans):
            try:
                source = read_input(scan, strict=self._strict, trained=self._model.info.training_scans)
                yield self._segment(source, partial(report, index))
            except InputError as error:
                if errors == "raise":
                    raise
                yield error

    def _segment(self, source: ScanInput, progress: Callable[[float], None]) -> Segmentation:
        total, done = count_units(self._model, source.scan.grid, self._predict), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done / total)

        result, report = run(self._model, source.scan, source.origin.name, Watch(advance=advance), self._predict)
        return Segmentation(report=report, label_lps=result.label, source=source.origin, result=result)


def segment(
    scan: Scan,
    model: str | Path,
    *,
    provider: Provider = "auto",
    strict: bool = False,
    spacing: Sequence[float] | None = None,
    affine: npt.ArrayLike | None = None,
    axes: Axes | None = None,
) -> Segmentation:
    """Segment one scan: the short form of `Model` and `Model.segment`, which explain the parameters.

    Each call opens the model and, on another device than the CPU, compares its labels with the CPU's. Use `Model` for
    several scans, and `infer_scans` or the command `infer` for many.

    Read the ``warnings`` of the report: a scan whose HU do not look like a CT is segmented unless `strict` refuses it.

    Raises
    ------
    InputError
        The scan, the model or the provider cannot be used, or `strict` refuses the scan; the message has the reason.

    >>> result = slicemill.segment("ct.nii.gz", "liver.onnx")      # doctest: +SKIP
    >>> result.label_lps, result.report.volumes_ml                 # doctest: +SKIP
    """
    opened = Model(path=model, provider=provider, strict=strict)
    return opened.segment(scan, spacing=spacing, affine=affine, axes=axes)


def _ignore(*_: float) -> None:
    """Report no progress."""

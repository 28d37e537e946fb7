"""A job as a case of the viewer: its volumes arrive in files of the job's folder while they are looked at."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slicemill.common.errors import ReadError
from slicemill.ct.labels import Labels
from slicemill.ct.scan import Slab, slab_depth
from slicemill.web.opened import CaseSource, MaskSource
from slicemill.web.serve.records import IMAGE, LABEL, PROBABILITY, ModelRecord, ScanMessage
from slicemill.web.volumes import VolumeSource

WAIT_SECONDS = 1.0


class Arriving:
    """A volume that another process writes to a file. The server says which slices are there; a thread reads them."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: npt.DTypeLike) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._parts: list[tuple[int, int]] = []
        self._warnings: tuple[str, ...] | None = None
        self._failure: str | None = None
        self._changed = threading.Condition()

    def add(self, z: int, count: int) -> None:
        """Say that slices from `z` on were written; those of labels are, again, after the model's rules."""
        if not (z >= 0 and count >= 1 and z + count <= self.shape[0]):
            raise ReadError("slices outside of the scan were announced.", where=self.path.name)
        with self._changed:
            self._parts.append((z, count))
            self._changed.notify_all()

    def add_all(self) -> None:
        """Say that the whole volume was written."""
        depth = slab_depth(self.shape)
        for z in range(0, self.shape[0], depth):
            self.add(z, min(depth, self.shape[0] - z))
        self.finish(())

    def finish(self, warnings: tuple[str, ...]) -> None:
        """Say that nothing more comes, and that all of it was checked."""
        with self._changed:
            self._warnings = warnings
            self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """Say that nothing more comes, and why."""
        with self._changed:
            if self._warnings is None:
                self._failure = reason
            self._changed.notify_all()

    def slabs(self, warnings: list[str]) -> Iterator[Slab]:
        """Yield slices as they arrive.

        Raises
        ------
        ReadError
            The rest does not come.
        """
        position = 0
        while True:
            with self._changed:
                while position == len(self._parts) and self._warnings is None and self._failure is None:
                    self._changed.wait(WAIT_SECONDS)
                parts = self._parts[position:]
                if not parts:
                    if self._failure is not None:
                        raise ReadError(self._failure)
                    warnings.extend(self._warnings or ())
                    return
            position += len(parts)
            for z, count in parts:
                yield Slab(z=z, voxels=self._read(z, count))

    def _read(self, z: int, count: int) -> npt.NDArray[np.generic]:
        _, ny, nx = self.shape
        items = count * ny * nx
        data = np.fromfile(self.path, self.dtype, items, offset=z * ny * nx * self.dtype.itemsize)
        if data.size != items:
            raise ReadError("ends early.", where=self.path.name)
        return data.reshape(count, ny, nx)


class JobVolumes:
    """The volumes of a job."""

    def __init__(self, folder: Path, scan: ScanMessage) -> None:
        self.image = Arriving(folder / IMAGE, scan.shape, np.int16)
        self.label = Arriving(folder / LABEL, scan.shape, np.uint8)
        self.probability = Arriving(folder / PROBABILITY, scan.shape, np.uint8)
        self._scan = scan

    def fail(self, reason: str) -> None:
        """Say that what is missing does not come."""
        for one in (self.image, self.label, self.probability):
            one.fail(reason)

    def as_case(self, model: ModelRecord) -> CaseSource:
        """Return the case of the viewer."""
        scan = self._scan
        labels = Labels(model.labels, model.organ, model.tumor)
        label = replace(_source(model.name, self.label), has_preliminary=True)
        masks = [MaskSource(name=model.name, labels=labels, source=label)]
        if model.gives_probability:
            name = "probability of tumor, before the rules"
            source = _source(name, self.probability)
            masks.append(MaskSource(name=name, labels=None, source=source, is_probability=True))
        return CaseSource(
            name=scan.name,
            image=_source(scan.name, self.image),
            masks=tuple(masks),
            spacing_mm=scan.spacing_mm,
            affine_lps=np.array(scan.affine_lps, dtype=np.float64),
            warnings=scan.warnings,
        )


def _source(name: str, volume: Arriving) -> VolumeSource:
    return VolumeSource(name=name, shape=volume.shape, dtype=volume.dtype, slabs=volume.slabs)

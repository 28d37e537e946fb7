"""The long-lived child process of the models: takes scans as plain voxels, and writes their labels.

Run as ``python -m slicemill.web.serve.model_child PROVIDER MODEL...``. It never reads a byte that was uploaded: the
child of a job has made int16 and a header of its own from them.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slicemill.common.documents import to_document
from slicemill.common.errors import InputError
from slicemill.common.failures import explain_failure
from slicemill.common.files import write_json
from slicemill.ct.formats.nifti.header import parse_grid
from slicemill.ct.formats.nifti.stream import view_bytes
from slicemill.ct.transpose import write_all
from slicemill.infer.inputs.jobs import LoadedScan, find_training_differences
from slicemill.infer.runtime.providers import Provider
from slicemill.infer.single import Watch, count_units, segment
from slicemill.store.training_scans import summarize_scans
from slicemill.web.serve.messages import Channel, Message
from slicemill.web.serve.nodules import NodulesModel, open_nodules, write_candidates
from slicemill.web.serve.records import (
    HEADER,
    IMAGE,
    LABEL,
    PROBABILITY,
    REPORT,
    RESULTS,
    CancelOrder,
    FailedMessage,
    LabeledMessage,
    ModelRecord,
    ModelsMessage,
    SegmentedMessage,
    SegmentOrder,
)

if TYPE_CHECKING:
    from slicemill.infer.candidates.records import ScanCandidates

MASK_NAME = "segmentation.nii.gz"
REPORT_SECONDS = 0.1
"""Time between two messages about progress."""


class CanceledError(Exception):
    """Nobody wants the result any more."""


class Orders:
    """The orders: scans in their turn, cancellations at once. Called from several threads."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[SegmentOrder] = deque()
        self._canceled: set[int] = set()
        self._lock = threading.Lock()

    def next(self) -> SegmentOrder:
        """Wait for the next scan."""
        while True:
            with self._lock:
                self._drain()
                if self._waiting:
                    return self._waiting.popleft()
            message = self._channel.orders.get()
            with self._lock:
                self._take(message)

    def is_canceled(self, job: int) -> bool:
        """Return whether a job was canceled."""
        with self._lock:
            self._drain()
            return job in self._canceled

    def _drain(self) -> None:
        while not self._channel.orders.empty():
            self._take(self._channel.orders.get())

    def _take(self, message: Message) -> None:
        if message.kind == CancelOrder.__name__:
            self._canceled.add(message.read(CancelOrder).job)
        else:
            self._waiting.append(message.read(SegmentOrder))


class Labels:
    """The file of a scan's labels: slices as they are labeled, and then all of them after the model's rules."""

    def __init__(self, descriptor: int, shape: tuple[int, int, int]) -> None:
        os.ftruncate(descriptor, int(np.prod(shape)))
        self._descriptor = descriptor
        self.fresh: list[int] = []
        """Slices that were written and not told of."""

    def write(self, label: npt.NDArray[np.uint8], slices: Sequence[int]) -> None:
        """Write slices of uint8[z, y, x]."""
        for z in slices:
            section = np.ascontiguousarray(label[z])
            write_all(self._descriptor, view_bytes(section), z * section.size, None)
        self.fresh += slices


@contextmanager
def open_labels(order: SegmentOrder) -> Iterator[Labels]:
    """Open the file LABEL of a job; it is never shortened, as the server reads it meanwhile."""
    descriptor = os.open(Path(order.folder) / LABEL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield Labels(descriptor, order.shape)
    finally:
        os.close(descriptor)


class Progress:
    """Tells which slices are labeled, and ends the work on a scan that was canceled."""

    def __init__(self, channel: Channel, orders: Orders, job: int, total: int, labels: Labels) -> None:
        self._channel, self._orders, self._job, self._total = channel, orders, job, total
        self._labels = labels
        self._done, self._told = 0, 0.0

    def advance(self, count: int) -> None:
        """Count slices that were labeled.

        Raises
        ------
        CanceledError
            The job was canceled.
        """
        if self._orders.is_canceled(self._job):
            raise CanceledError
        self._done += count
        if time.monotonic() - self._told > REPORT_SECONDS:
            self._told = time.monotonic()
            share, slices = min(1.0, self._done / self._total), tuple(self._labels.fresh)
            self._labels.fresh.clear()
            self._channel.send(LabeledMessage(job=self._job, share=share, slices=slices))


def main() -> None:
    """Load the models, and label scans until the server ends."""
    provider, paths = sys.argv[1], sys.argv[2:]
    channel = Channel()
    try:
        models = [open_nodules(Path(path), _provider(provider)) for path in paths]
    except Exception as error:  # noqa: BLE001 (the page shows it)
        channel.send(FailedMessage(reason=explain_failure(error, "the model").reason))
        return
    channel.send(ModelsMessage(models=tuple(map(describe_model, models))))
    orders = Orders(channel)
    while True:
        order = orders.next()
        if orders.is_canceled(order.job):
            continue
        try:
            with open_labels(order) as labels:
                channel.send(_segment(models[order.model], order, channel, orders, labels))
        except CanceledError:
            continue
        except Exception as error:  # noqa: BLE001 (any error fails one job)
            reason = explain_failure(error, order.name).reason.replace(f"{order.folder}/", "")
            channel.send(FailedMessage(job=order.job, reason=reason))


def _provider(name: str) -> Provider:
    known: tuple[Provider, ...] = ("auto", "cpu", "cuda", "tensorrt", "openvino")
    found = next((one for one in known if one == name), None)
    if found is None:
        raise InputError(f"{name!r} is no provider.")
    return found


def describe_model(opened: NodulesModel) -> ModelRecord:
    """Return what the page shows of a model."""
    model = opened.model
    info, card = model.info, model.info.card
    return ModelRecord(
        name=info.name,
        sha256=info.sha256,
        labels=card.labels,
        organ=card.organ,
        tumor=card.tumor,
        size=info.size,
        context=card.context,
        spacing_mm=card.spacing_mm,
        license=card.license,
        training=dict(card.training) if card.training else None,
        trained_on=None if info.training_scans is None else summarize_scans(info.training_scans),
        gives_probability=card.tumor is not None and (info.gives_tumor or info.gives_probability),
        provider=model.provider,
        judges_candidates=opened.judge is not None,
    )


def _segment(
    opened: NodulesModel, order: SegmentOrder, channel: Channel, orders: Orders, labels: Labels
) -> SegmentedMessage:
    folder = Path(order.folder)
    grid = parse_grid((folder / HEADER).read_bytes())
    volume = np.fromfile(folder / IMAGE, dtype="<i2").reshape(order.shape)
    if grid.stored_shape != order.shape:
        raise InputError("its header and its voxels have different shapes.", where=order.name)
    model = opened.model
    trained = None if order.is_picture else model.info.training_scans  # a picture's window cuts its HU
    differences = find_training_differences(trained, volume, grid)
    loaded = LoadedScan(volume=volume, grid=grid, header=b"", warnings=(*order.warnings, *differences))
    progress = Progress(channel, orders, order.job, count_units(model, grid, opened.predict), labels)
    judged: list[ScanCandidates] = []
    segmentation, report = segment(
        model,
        loaded,
        MASK_NAME,
        Watch(
            advance=progress.advance,
            labeled=labels.write,
            before_rules=lambda found: judged.extend(opened.find(loaded, found, MASK_NAME)),
        ),
        opened.predict,
        z_range="auto" if opened.judge is None else "all",  # candidates may lie anywhere
    )
    (folder / RESULTS).mkdir(mode=0o700)
    answer = write_candidates(folder / RESULTS, judged[0], loaded) if judged else None
    document = to_document(report)
    write_json(folder / RESULTS / REPORT, document)
    if segmentation.tumor_probability is not None:
        segmentation.tumor_probability.tofile(folder / PROBABILITY)
    labels.write(segmentation.label, range(order.shape[0]))
    return SegmentedMessage(
        job=order.job,
        report=document,
        has_probability=segmentation.tumor_probability is not None,
        candidates=answer,
    )


if __name__ == "__main__":
    main()

"""One uploaded scan: what is known of it, and how far it is."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.web.serve.records import (
    ACTIVE,
    INPUT,
    Answer,
    Choice,
    JobRecord,
    ResultFile,
    ScanMessage,
    StartRequest,
    Status,
    Step,
)
from slicemill.web.serve.uploads import Names, Upload

if TYPE_CHECKING:
    from slicemill.web.opened import OpenCase
    from slicemill.web.serve.cases import JobVolumes
    from slicemill.web.serve.child import Child

STEP_NAMES: dict[Status, str] = {
    "uploading": "Upload",
    "reading": "Read and check",
    "choosing": "Choose a scan",
    "waiting": "Wait for the model",
    "segmenting": "Segment",
    "writing": "Measure and write files",
}
UNNAMED = "scan"


@dataclass(slots=True)
class _Period:
    status: Status
    start: float
    end: float | None = None


class Job:
    """A job. Only the server's event loop changes it."""

    def __init__(self, number: int, folder: Path) -> None:
        self.id = number
        self.folder = folder
        self.names = Names()
        self.upload_bytes = 0
        self.uploads: dict[int, Upload] = {}
        """The files by the numbers that the page gives them."""
        self.request = StartRequest()
        self.child: Child | None = None
        self.task: asyncio.Task[None] | None = None
        self.scan: ScanMessage | None = None
        self.volumes: JobVolumes | None = None
        self.case: OpenCase | None = None
        self.warnings: tuple[str, ...] = ()
        self.slices_read = 0
        self.share = 0.0
        self.choices: tuple[Choice, ...] = ()
        self.thumbnails: dict[int, bytes] = {}
        """Pictures of the choices by index, as far as they are drawn: gray values of a square, row by row."""
        self.answer: Answer | None = None
        self.failure: str | None = None
        self.files: tuple[ResultFile, ...] = ()
        self.missing: tuple[str, ...] = ()
        self.threshold_note = ""
        self.is_ended = False
        """Whether it was removed."""
        self.last_used = time.monotonic()
        self.revision = 0
        self.status: Status = "uploading"
        self.chosen: asyncio.Future[int] | None = None
        self._periods = [_Period("uploading", time.monotonic())]
        self._changed = asyncio.Event()

    @property
    def inputs(self) -> Path:
        """Return the folder of the uploaded files."""
        return self.folder / INPUT

    @property
    def is_receiving(self) -> bool:
        """Return whether a file is arriving."""
        return any(upload.is_open for upload in self.uploads.values())

    @property
    def has_all_files(self) -> bool:
        """Return whether there are files, and all of them are complete."""
        return bool(self.uploads) and all(upload.is_complete for upload in self.uploads.values())

    @property
    def is_active(self) -> bool:
        """Return whether work on it goes on, or will."""
        return self.status in ACTIVE

    @property
    def name(self) -> str:
        """Return the name that the user knows it by."""
        if self.scan is not None:
            return self.scan.name
        return self.names.files[0].shown if self.names.files else UNNAMED

    def set_status(self, status: Status) -> None:
        """Begin the next step."""
        now = time.monotonic()
        self._periods[-1].end = self._periods[-1].end or now
        self.status = status
        if status in STEP_NAMES:
            self._periods.append(_Period(status, now))
        self.change()

    def change(self) -> None:
        """Tell all who wait that something is new."""
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, revision: int, seconds: float) -> bool:
        """Wait until the job is newer than a revision, and return whether it is."""
        if self.revision == revision:
            try:
                await asyncio.wait_for(self._changed.wait(), seconds)
            except TimeoutError:
                return False
        return True

    def touch(self) -> None:
        """Note that somebody looks at it."""
        self.last_used = time.monotonic()

    def describe(self, ahead: int) -> JobRecord:
        """Return what the page shows."""
        return JobRecord(
            id=self.id,
            revision=self.revision,
            name=self.name,
            status=self.status,
            model=self.request.model,
            steps=self._steps(),
            upload_bytes=self.upload_bytes,
            upload_files=len(self.names.files),
            slices=self.scan.shape[0] if self.scan else 0,
            slices_read=self.slices_read,
            share=self.share,
            slices_per_second=self._rate(),
            ahead=ahead,
            has_case=self.case is not None,
            choices=self.choices if self.status == "choosing" else (),
            thumbnails=tuple(self.thumbnails) if self.status == "choosing" else (),
            answer=self.answer,
            failure=self.failure,
            files=self.files,
            missing=self.missing,
            threshold_note=self.threshold_note,
            has_pixel_size=self.scan is None or self.scan.has_pixel_size,
        )

    def _steps(self) -> tuple[Step, ...]:
        now = time.monotonic()
        return tuple(
            Step(
                name=STEP_NAMES[one.status],
                seconds=round((one.end or now) - one.start, 1),
                is_over=one.end is not None,
            )
            for one in self._periods
        )

    def _rate(self) -> float | None:
        """Return the slices that the models label in a second."""
        period = next((one for one in reversed(self._periods) if one.status == "segmenting"), None)
        if period is None or self.scan is None or not self.share:
            return None
        seconds = (period.end or time.monotonic()) - period.start
        return round(self.share * self.scan.shape[0] / seconds, 1) if seconds > 0 else None

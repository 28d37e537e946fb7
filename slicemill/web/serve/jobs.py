"""The jobs of a server: at most a few at a time; each has a folder and a child process, and leaves nothing behind."""

import asyncio
import contextlib
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from slicemill.common.disk import require_space
from slicemill.common.errors import InputError
from slicemill.web.opened import OpenCase
from slicemill.web.serve.answers import make_answer
from slicemill.web.serve.cases import JobVolumes
from slicemill.web.serve.child import Child
from slicemill.web.serve.folder import remove
from slicemill.web.serve.job import Job
from slicemill.web.serve.keep import describe_copy_error, keep_results
from slicemill.web.serve.limits import THREADS
from slicemill.web.serve.messages import Message
from slicemill.web.serve.models import Models
from slicemill.web.serve.records import (
    INPUT,
    LIMITS,
    RESULTS,
    ChoicesMessage,
    ChooseOrder,
    FailedMessage,
    FilesMessage,
    LabeledMessage,
    Limits,
    PrepareOrder,
    ReadMessage,
    ScanMessage,
    SegmentOrder,
    SlicesMessage,
    StartRequest,
    ThumbnailMessage,
    WriteOrder,
)
from slicemill.web.serve.thumbnails import parse_thumbnail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slicemill.web.entries import Entry

SWEEP_SECONDS = 5.0
ID_BITS = 52
"""Random bits of a job's number: as many as a number of JavaScript holds. The cookie is what protects a job."""
NO_THRESHOLD = "This model gives no probabilities of tumor, so its threshold cannot be changed."
NOT_JUDGED = "Candidates of nodules: a single slice has none, since the classifier judges cubes of 48 mm."
NOT_KEPT = "A copy in the folder of --keep: {reason}. Download the files here."
UNEXPECTED = (
    "an unexpected error ({kind}) in slicemill ended the work on this scan. Try again, and report it if it stays."
)


class BusyError(Exception):
    """As many scans are kept as may be."""


class Jobs:
    """All jobs, as the cases of the viewer."""

    marks = None
    entries: "Sequence[Entry]" = ()

    def __init__(self, models: Models, folder: Path, keep: Path | None = None, limits: Limits = LIMITS) -> None:
        self.models = models
        self.limits = limits
        self._folder = folder
        self._keep = keep
        self._jobs: dict[int, Job] = {}

    def find_open(self, number: int) -> OpenCase | None:
        """Return the case of a job."""
        job = self._jobs.get(number)
        if job is None:
            return None
        job.touch()
        return job.case

    def open(self, number: int) -> OpenCase:
        """Return the case of a job.

        Raises
        ------
        IndexError
            There is no such job, or its scan was not read yet.
        """
        case = self.find_open(number)
        if case is None:
            raise IndexError("such scan")
        return case

    def find(self, number: int) -> Job | None:
        """Return a job."""
        return self._jobs.get(number)

    def all(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        return list(self._jobs.values())

    def count_ahead(self, job: Job) -> int:
        """Return how many scans are segmented before this one."""
        if job.status not in ("waiting", "reading"):
            return 0
        order = list(self._jobs.values())
        before = order[: order.index(job)] if job in order else []
        return sum(one.status in ("reading", "waiting", "segmenting") for one in before)

    async def run(self) -> None:
        """Load the models, and remove what nobody uses, until this task is cancelled; then remove everything."""
        loading = asyncio.create_task(self._load())
        try:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                for job in self.all():
                    if self._is_left(job):
                        await self.end(job)
        finally:
            loading.cancel()
            for job in self.all():
                await self.end(job)
            await self.models.close()

    async def _load(self) -> None:
        await self.models.load()
        for job in self.all():
            self._open_case(job)

    def _is_left(self, job: Job) -> bool:
        idle = time.monotonic() - job.last_used
        if job.status == "uploading":
            return idle > self.limits.stalled_seconds and not job.is_receiving
        return idle > 60 * self.limits.idle_minutes and (not job.is_active or job.status == "choosing")

    async def create(self, upload_bytes: int = 0) -> Job:
        """Return a new job for files of so many bytes, whose child process starts while they arrive.

        Raises
        ------
        BusyError
            There are as many as may be.
        OSError
            No folder or process can be made, or the files do not fit on the disk.
        """
        require_space(self._folder, upload_bytes, "the upload")
        if len(self._jobs) >= self.limits.jobs:
            raise BusyError
        number = secrets.randbits(ID_BITS) | 1
        job = Job(number, self._folder / secrets.token_hex(16))
        self._jobs[number] = job
        try:
            job.folder.mkdir(mode=0o700)
            job.inputs.mkdir(mode=0o700)
            job.child = await Child.start("scan_child", str(job.folder), environment=THREADS)
        except BaseException:
            await self.end(job)
            raise
        return job

    def start(self, job: Job, request: StartRequest) -> None:
        """Begin the work on a job whose files are all here."""
        job.request = request
        job.set_status("reading")
        job.task = asyncio.create_task(self._work(job))

    async def end(self, job: Job) -> None:
        """Remove a job with its processes and files."""
        self._jobs.pop(job.id, None)
        job.is_ended = True
        if job.task is not None and job.task is not asyncio.current_task():
            job.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # what failed must not keep the files
                await job.task
        if job.child is not None:
            await job.child.kill()
        if job.volumes is not None:
            job.volumes.fail("the scan was removed.")
        if job.case is not None:
            job.case.stop()
        await asyncio.to_thread(remove, job.folder)
        job.change()

    async def _work(self, job: Job) -> None:
        """Take a job through its steps. What fails is shown, and leaves no file."""
        try:
            await self._read(job)
            await self._segment(job)
            await self._write(job)
        except (InputError, OSError) as error:
            await self._fail(job, _explain(error))
        except Exception as error:  # noqa: BLE001 (a job never stays in a step that nobody works on)
            await self._fail(job, UNEXPECTED.format(kind=type(error).__name__))

    async def _read(self, job: Job) -> None:
        child = _child_of(job)
        order = PrepareOrder(
            files=tuple(job.names.files),
            limits=self.limits,
            picture=job.request.picture,
            is_example=job.request.is_example,
        )
        await child.send(order)
        asking: asyncio.Task[None] | None = None
        try:
            while not self._take(job, message := await child.read()):
                if message.kind == ChoicesMessage.__name__:
                    asking = asyncio.create_task(_ask(job, child))
        finally:
            if asking is not None:
                asking.cancel()
        if job.volumes is None or job.slices_read != job.volumes.image.shape[0]:
            raise InputError("the scan is incomplete.")
        job.volumes.image.finish(job.warnings)

    def _take(self, job: Job, message: Message) -> bool:
        """Note what the child says while it reads, and return whether all was read."""
        if message.kind == SlicesMessage.__name__:
            part = message.read(SlicesMessage)
            if job.volumes is None:
                raise InputError("slices came before the header.")
            job.volumes.image.add(part.z, part.count)
            job.slices_read += part.count
            job.change()
        elif message.kind == ScanMessage.__name__:
            job.scan = message.read(ScanMessage)
            job.volumes = JobVolumes(job.folder, job.scan)
            self._open_case(job)
            job.change()
        elif message.kind == ChoicesMessage.__name__:
            if job.chosen is not None:
                raise InputError("a child process sent choices twice.")
            job.choices = message.read(ChoicesMessage).choices
            job.chosen = asyncio.get_running_loop().create_future()
            job.set_status("choosing")
        elif message.kind == ThumbnailMessage.__name__:
            picture = message.read(ThumbnailMessage)
            if not 0 <= picture.index < len(job.choices):
                raise InputError("a child process sent a picture of no scan.")
            job.thumbnails[picture.index] = parse_thumbnail(picture.gray)
            job.change()
        elif message.kind == FailedMessage.__name__:
            raise InputError(message.read(FailedMessage).reason)
        else:
            job.warnings = message.read(ReadMessage).warnings
            return True
        return False

    def _open_case(self, job: Job) -> None:
        """Let the page look at a job, once its header and the model's labels are known."""
        models = self.models.records
        if job.volumes is None or job.case is not None or models is None or job.failure:
            return
        if job.request.model >= len(models):
            return  # `_begin` refuses it in its turn
        model = models[job.request.model]
        job.case = OpenCase(job.volumes.as_case(model))
        job.threshold_note = "" if model.gives_probability else NO_THRESHOLD
        job.change()

    def _begin(self, job: Job) -> None:
        """Note that a job is segmented; only now it is certain that the models are loaded."""
        if job.request.model >= len(self.models.records or ()):
            raise InputError("there is no such model. Reload the page and choose one of its list.")
        job.set_status("segmenting")

    async def _segment(self, job: Job) -> None:
        scan, volumes = job.scan, job.volumes
        assert scan is not None  # noqa: S101 (_read made them)
        assert volumes is not None  # noqa: S101
        job.set_status("waiting")

        def advance(more: LabeledMessage) -> None:
            job.share = more.share
            for z in more.slices:
                volumes.label.add(z, 1)
            job.change()

        order = SegmentOrder(
            job=job.id,
            model=job.request.model,
            folder=str(job.folder),
            name=scan.name,
            shape=scan.shape,
            warnings=job.warnings,
            is_picture=scan.is_picture,
        )
        done = await self.models.segment(order, lambda: self._begin(job), advance)
        self._open_case(job)
        job.share = 1.0
        job.answer = make_answer(done.report, scan, job.warnings, done.candidates)
        if done.candidates is None and self._judges(job):
            job.missing += (NOT_JUDGED,)
        volumes.label.add_all()
        if done.has_probability:
            volumes.probability.add_all()
        else:
            volumes.probability.fail("the model gave no probabilities for this scan.")

    def _judges(self, job: Job) -> bool:
        models = self.models.records or ()
        return job.request.model < len(models) and models[job.request.model].judges_candidates

    async def _write(self, job: Job) -> None:
        job.set_status("writing")
        child, models = _child_of(job), self.models.records
        await child.send(WriteOrder(model_sha256=models[job.request.model].sha256 if models else ""))
        message = await child.read()
        if message.kind == FailedMessage.__name__:
            raise InputError(message.read(FailedMessage).reason)
        done = message.read(FilesMessage)
        job.files = tuple(file for file in done.files if _is_name(file.name))
        job.missing += done.missing
        await child.kill()
        await asyncio.to_thread(remove, job.folder / INPUT)
        if self._keep is not None:
            try:
                await asyncio.to_thread(keep_results, job.folder / RESULTS, self._keep)
            except OSError as error:
                job.missing += (NOT_KEPT.format(reason=describe_copy_error(error)),)
        job.touch()
        job.set_status("done")

    async def _fail(self, job: Job, reason: str) -> None:
        """End the work on a job: the answer is shown if there is one, with what is missing."""
        if job.child is not None:
            await job.child.kill()
        if job.answer is not None:
            job.missing += (f"The files could not be written: {reason}",)
            await asyncio.to_thread(remove, job.folder / INPUT)
            job.set_status("done")
            return
        job.failure = reason
        if job.volumes is not None:
            job.volumes.fail(reason)
        if job.case is not None:
            job.case.stop()
            job.case = None
        await asyncio.to_thread(remove, job.folder)
        job.set_status("failed")


def _child_of(job: Job) -> Child:
    if job.child is None:
        raise InputError("the process of the scan has ended.")
    return job.child


async def _ask(job: Job, child: Child) -> None:
    """Wait until the user chooses a scan, and tell the child, which draws the scans meanwhile."""
    assert job.chosen is not None  # noqa: S101 (it was made with the choices)
    index = await job.chosen
    job.set_status("reading")
    await child.send(ChooseOrder(index=index))


def _is_name(name: str) -> bool:
    return "/" not in name and not name.startswith(".")


def _explain(error: InputError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}."
    return str(error)

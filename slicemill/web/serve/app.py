"""What the page of `slicemill serve` asks for, beside what it asks of the viewer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from slicemill.common.documents import from_json, to_document, to_plain
from slicemill.common.errors import InputError
from slicemill.common.terminal import finite_or_null
from slicemill.web.app import RefusedError, make_app, read_body
from slicemill.web.guard import Access, Guard, read_away
from slicemill.web.page_files import read_page_files
from slicemill.web.serve.job import Job
from slicemill.web.serve.jobs import BusyError, Jobs
from slicemill.web.serve.records import (
    RESULTS,
    ChooseOrder,
    CreatedRecord,
    JobRecord,
    ServerRecord,
    StartRequest,
    UploadRecord,
)
from slicemill.web.serve.uploads import SUFFIXES, StalledError, TooLargeError, Upload, receive

T = TypeVar("T")
MOST_JSON = 4096
COMMENT_SECONDS = 15.0
"""Time between two signs of life of a stream of events."""
NO_SPACE = "Remove files, or start slicemill with TMPDIR on another disk."
UNREAD_BYTES = 8 << 20
"""Bytes of a refused upload that are read, so that its sender reads the answer."""
EVENT_SECONDS = 0.1
"""Least time between two events."""


def make_serve_app(jobs: Jobs, access: Access, version: str) -> Guard:
    """Return the application, behind its `Guard`."""
    routes = JobRoutes(jobs, version)
    more = [
        Route("/api/server", routes.show_server),
        Route("/api/jobs", routes.create, methods=["POST"]),
        Route("/api/jobs/{job:int}/files", routes.upload, methods=["PUT"]),
        Route("/api/jobs/{job:int}/files/{number:int}", routes.show_upload),
        Route("/api/jobs/{job:int}/start", routes.start, methods=["POST"]),
        Route("/api/jobs/{job:int}/choices/{index:int}", routes.show_thumbnail),
        Route("/api/jobs/{job:int}/choose", routes.choose, methods=["POST"]),
        Route("/api/jobs/{job:int}/end", routes.end, methods=["POST"]),
        Route("/api/jobs/{job:int}/events", routes.stream_events),
        Route("/api/jobs/{job:int}/results/{name}", routes.download),
    ]
    return make_app(jobs, access, version, read_page_files(has_start=True), more)


class JobRoutes:
    """Uploads, steps and results of jobs."""

    def __init__(self, jobs: Jobs, version: str) -> None:
        self._jobs = jobs
        self._version = version

    async def show_server(self, _request: Request) -> Response:
        """Return models, limits, and the jobs that are kept."""
        models = self._jobs.models
        return _to_json(
            ServerRecord(
                version=self._version,
                limits=self._jobs.limits,
                models=models.records,
                failure=models.failure,
                suffixes=SUFFIXES,
                jobs=tuple(map(self._describe, self._jobs.all())),
            )
        )

    async def create(self, request: Request) -> Response:
        """Make a job for files that are to be uploaded; `bytes` says how large they are together."""
        stated = request.query_params.get("bytes", "")
        size = int(stated) if stated.isdecimal() and len(stated) < 16 else 0
        try:
            job = await self._jobs.create(size)
        except BusyError as error:
            most = self._jobs.limits.jobs
            raise RefusedError(429, f"{most} scans are kept, which is the most. Remove one of them first.") from error
        except OSError as error:
            raise RefusedError(507, f"No scan can be taken: {error.strerror or error}. {NO_SPACE}") from error
        return _to_json(CreatedRecord(id=job.id), 201)

    async def upload(self, request: Request) -> Response:
        """Take a file: the raw body. Its name is text; in the folder it has a number.

        The page gives it a number, too. If the connection breaks, the page asks how much has arrived
        (`show_upload`), and sends the rest with this `offset`; else the file is removed with its job after a while.
        """
        job, limits = self._find(request), self._jobs.limits
        if job.status != "uploading":
            raise RefusedError(409, "The files of this scan are complete.")
        length = request.headers.get("content-length", "")
        too_large = RefusedError(413, f"The files of a scan may have {limits.file_bytes / 2**30:.3g} GiB together.")
        if length.isdecimal() and job.upload_bytes + int(length) > limits.file_bytes:
            await read_away(request.receive, UNREAD_BYTES)
            raise too_large
        number, offset = _read_place(job, request.query_params)
        if number not in job.uploads and len(job.names.files) >= limits.files:
            await read_away(request.receive, UNREAD_BYTES)
            raise RefusedError(413, f"A scan may have {limits.files:,} files.")
        upload = _begin(job, number, offset, request.query_params.get("name", ""))
        try:
            parts = _read_parts(request, job, upload, limits.file_bytes)
            await receive(parts, job.inputs / upload.file.local, limits.stalled_seconds, upload.bytes)
            upload.is_complete = True
        except TooLargeError as error:
            await self._jobs.end(job)
            await read_away(request.receive, UNREAD_BYTES)
            raise too_large from error
        except StalledError as error:
            await self._jobs.end(job)
            raise RefusedError(408, f"No byte arrived for {limits.stalled_seconds} seconds.") from error
        except ClientDisconnect as error:
            raise RefusedError(400, "The upload ended early.") from error  # the rest may follow
        except OSError as error:
            await self._jobs.end(job)
            raise RefusedError(507, f"The upload cannot be stored: {error.strerror or error}.") from error
        finally:
            upload.is_open = False
            job.touch()
        return Response(status_code=204)

    async def show_upload(self, request: Request) -> Response:
        """Return how much of a file has arrived."""
        upload = self._find(request).uploads.get(request.path_params["number"])
        if upload is None:
            raise RefusedError(404, "Nothing of this file has arrived.")
        return _to_json(UploadRecord(bytes=upload.bytes, is_complete=upload.is_complete))

    async def start(self, request: Request) -> Response:
        """Begin the work on a job."""
        job, wanted = self._find(request), await _read_json(request, StartRequest)
        models = self._jobs.models.records
        has_all = not job.uploads if wanted.is_example else job.has_all_files
        if job.status != "uploading" or not has_all:
            raise RefusedError(409, "The files of this scan are not complete, or work on it has begun.")
        if wanted.model < 0 or (models is not None and wanted.model >= len(models)):
            raise RefusedError(400, "There is no such model.")
        self._jobs.start(job, wanted)
        return Response(status_code=204)

    async def choose(self, request: Request) -> Response:
        """Choose one of several scans."""
        job, index = self._find(request), (await _read_json(request, ChooseOrder)).index
        if job.chosen is None or job.chosen.done():
            raise RefusedError(409, "There is nothing to choose.")
        if not 0 <= index < len(job.choices) or job.choices[index].refused is not None:
            raise RefusedError(400, "This scan cannot be chosen.")
        job.chosen.set_result(index)
        return Response(status_code=204)

    async def show_thumbnail(self, request: Request) -> Response:
        """Send the picture of one of several scans: gray values of a square, row by row."""
        gray = self._find(request).thumbnails.get(request.path_params["index"])
        if gray is None:
            raise RefusedError(404, "There is no picture of this scan.")
        return Response(gray, media_type="application/octet-stream")

    async def end(self, request: Request) -> Response:
        """Stop the work on a job, and remove it with its files."""
        await self._jobs.end(self._find(request))
        return Response(status_code=204)

    async def stream_events(self, request: Request) -> Response:
        """Send the state of a job whenever it changes; ``Last-Event-ID`` says which one the client has."""
        last = request.headers.get("last-event-id", "")
        seen = int(last) if last.isdecimal() and len(last) < 16 else -1
        return StreamingResponse(self._events(self._find(request), seen), media_type="text/event-stream")

    async def download(self, request: Request) -> Response:
        """Send a result; only the names of the list are known."""
        job, name = self._find(request), request.path_params["name"]
        if name not in {file.name for file in job.files}:
            raise RefusedError(404, "There is no such file.")
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return FileResponse(job.folder / RESULTS / name, media_type="application/octet-stream", headers=headers)

    async def _events(self, job: Job, seen: int) -> AsyncIterator[bytes]:
        yield b": open\n\n"
        while not job.is_ended:
            job.touch()
            if job.revision == seen:
                if not await job.wait_for_change(seen, COMMENT_SECONDS):
                    yield b": still here\n\n"
                continue
            seen = job.revision
            text = json.dumps(finite_or_null(to_document(self._describe(job))))
            yield f"id: {seen}\ndata: {text}\n\n".encode()
            await asyncio.sleep(EVENT_SECONDS)
        yield b"event: ended\ndata: {}\n\n"

    def _describe(self, job: Job) -> JobRecord:
        return job.describe(self._jobs.count_ahead(job))

    def _find(self, request: Request) -> Job:
        job = self._jobs.find(request.path_params["job"])
        if job is None:
            raise RefusedError(404, "This scan is not here any more.")
        job.touch()
        return job


def _read_place(job: Job, words: QueryParams) -> tuple[int, int]:
    """Return the number of a file, and the offset of what is sent of it."""
    number, offset = words.get("number", str(len(job.uploads))), words.get("offset", "0")
    if not all(text.isdecimal() and len(text) < 16 for text in (number, offset)):
        raise RefusedError(400, "Number and offset of a file must be numbers.")
    return int(number), int(offset)


def _begin(job: Job, number: int, offset: int, name: str) -> Upload:
    """Return a new upload of a job, or the one whose rest follows now.

    Raises
    ------
    RefusedError
        Another part of the file is expected.
    """
    upload = job.uploads.get(number)
    if upload is None and offset == 0:
        upload = job.uploads[number] = Upload(job.names.add(name))
    elif upload is None or upload.is_open or upload.is_complete or upload.bytes != offset:
        raise RefusedError(409, "Another part of this file is expected.")
    upload.is_open = True
    return upload


async def _read_parts(request: Request, job: Job, upload: Upload, most: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, and count it among all bytes of the job.

    Raises
    ------
    TooLargeError
        The job has more than `most` bytes; no more is read.
    """
    told = time.monotonic()
    async for part in request.stream():
        if job.is_ended:
            raise RefusedError(410, "This scan was removed.")  # not 409: the page would try again
        job.upload_bytes += len(part)
        upload.bytes += len(part)
        if job.upload_bytes > most:
            raise TooLargeError
        job.touch()
        if time.monotonic() - told > EVENT_SECONDS:
            told = time.monotonic()
            job.change()
        yield part


async def _read_json(request: Request, kind: type[T]) -> T:
    try:
        return from_json(kind, await read_body(request, MOST_JSON), "the request")
    except InputError as error:
        raise RefusedError(400, str(error)) from error


def _to_json(record: object, status: int = 200) -> Response:
    return JSONResponse(finite_or_null(to_plain(record)), status_code=status)

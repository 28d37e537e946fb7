"""The server's application: the page, its files, and what it asks for."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slicemill.common.documents import to_plain
from slicemill.common.errors import InputError
from slicemill.common.failures import explain_failure
from slicemill.common.terminal import finite_or_null
from slicemill.web.guard import Access, Guard
from slicemill.web.marks import MARKS
from slicemill.web.opened import OpenCase
from slicemill.web.page_files import PageFile, PageFiles, read_page_files
from slicemill.web.records import describe_case, describe_list, describe_parts, describe_progress
from slicemill.web.sections import PLANES
from slicemill.web.surface_bytes import pack_surface
from slicemill.web.viewer import Cases
from slicemill.web.volumes import NotReadYetError, Volume

Result = TypeVar("Result")
FOREVER = "public, max-age=31536000, immutable"
MOST_BODY = 256
"""Bytes of the largest body: a token, or a mark."""
BODY_SECONDS = 30
"""Time for a body to arrive."""
WAIT_SECONDS = 10
"""Longest time that an answer waits for a section to be read; the page then asks again."""
POLL_SECONDS = 0.02


class RefusedError(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def make_app(
    viewer: Cases, access: Access, version: str, page: PageFiles | None = None, more: Sequence[Route] = ()
) -> Guard:
    """Return the application, behind its `Guard`; with `more` routes than those of the viewer."""
    files = page or read_page_files()
    routes = Routes(viewer, access, version)
    app = Starlette(
        routes=[
            Route("/", _serve(files.index)),
            Route("/static/{digest}/{name}", _serve_static(files)),
            Route("/session", routes.start_session, methods=["POST"]),
            Route("/api/cases", routes.list_cases),
            Route("/api/cases/{case:int}", routes.show_case),
            Route("/api/cases/{case:int}/progress", routes.show_progress),
            Route("/api/cases/{case:int}/mark", routes.set_mark, methods=["PUT"]),
            Route("/api/cases/{case:int}/parts/{mask:int}/{value:int}", routes.show_parts),
            Route("/api/cases/{case:int}/surface/{mask:int}/{value:int}", routes.show_surface),
            Route("/api/cases/{case:int}/image/{plane}/{index:int}", routes.show_image),
            Route("/api/cases/{case:int}/mask/{mask:int}/{plane}/{index:int}", routes.show_mask),
            *more,
        ],
        exception_handlers={
            RefusedError: _explain_refusal,
            NotReadYetError: _explain_unread,
            404: _explain_missing,
            Exception: _explain_bug,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, access)


class Routes:
    """What the page asks for."""

    def __init__(self, viewer: Cases, access: Access, version: str) -> None:
        self._viewer = viewer
        self._access = access
        self._version = version

    async def start_session(self, request: Request) -> Response:
        """Trade the token of the printed address for a cookie."""
        if not self._access.accepts_token(await read_body(request)):
            raise RefusedError(401, "This address is of another run of slicemill; open the one that it printed last.")
        response = Response(status_code=204)
        response.set_cookie(self._access.cookie, self._access.session, httponly=True, samesite="strict", path="/")
        return response

    async def list_cases(self, _request: Request) -> Response:
        """Return the list of cases."""
        return _to_json(describe_list(self._viewer, self._version))

    async def show_case(self, request: Request) -> Response:
        """Open a case, which makes it the one that was used last."""
        number = request.path_params["case"]
        return _to_json(describe_case(await _run(lambda: self._viewer.open(number))))

    async def show_progress(self, request: Request) -> Response:
        """Return how much of a case was read."""
        return _to_json(describe_progress(await self._open(request)))

    async def show_parts(self, request: Request) -> Response:
        """Return the parts of a label."""
        case, numbers = await self._open(request), request.path_params
        return _to_json(await _run(lambda: describe_parts(case, numbers["mask"], numbers["value"])))

    async def show_surface(self, request: Request) -> Response:
        """Return the surface of a label, as `slicemill.web.surface_bytes` packs it."""
        case, numbers = await self._open(request), request.path_params
        data = await _run(lambda: pack_surface(case.find_surface(numbers["mask"], numbers["value"])))
        return Response(data, media_type="application/octet-stream")

    async def show_image(self, request: Request) -> Response:
        """Return a section of the scan, int16 little endian, HU."""
        case = await self._open(request)
        return await _send_section(case.image, request)

    async def show_mask(self, request: Request) -> Response:
        """Return a section of a mask, uint8, label values."""
        case = await self._open(request)
        number = request.path_params["mask"]
        volume = case.masks[number] if number < len(case.masks) else None
        if volume is None:
            raise RefusedError(404, "There is no such mask.")
        return await _send_section(volume, request)

    async def set_mark(self, request: Request) -> Response:
        """Mark a case, or remove its mark; the body is JSON, a mark or null."""
        marks, number = self._viewer.marks, request.path_params["case"]
        if marks is None or number >= len(self._viewer.entries):
            raise RefusedError(404, "Cases cannot be marked: `slicemill view` was started without --marks FILE.")
        try:
            mark = json.loads(await read_body(request))
        except ValueError as error:
            raise RefusedError(400, "A mark must be JSON.") from error
        if mark is not None and mark not in MARKS:
            raise RefusedError(400, f"A mark must be one of {', '.join(MARKS)}, or null.")
        await _run(lambda: marks.put(self._viewer.entries[number].name, mark))
        return Response(status_code=204)

    async def _open(self, request: Request) -> OpenCase:
        number = request.path_params["case"]
        case = self._viewer.find_open(number)
        return case if case is not None else await _run(lambda: self._viewer.open(number))


async def _send_section(volume: Volume, request: Request) -> Response:
    """Return a section, as soon as it was read."""
    plane = next((plane for plane in PLANES if plane == request.path_params["plane"]), None)
    if plane is None:
        raise RefusedError(404, "There is no such plane.")
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        try:
            data = await _run(lambda: volume.read_section(plane, request.path_params["index"]))
        except NotReadYetError as error:
            if asyncio.get_running_loop().time() > deadline or await request.is_disconnected():
                raise RefusedError(503, "This section was not read yet.") from error
            await asyncio.sleep(POLL_SECONDS)
        else:
            return Response(data, media_type="application/octet-stream")


async def _run(work: Callable[[], Result]) -> Result:
    """Run what blocks in a thread, and turn what may go wrong into an answer."""
    try:
        return await run_in_threadpool(work)
    except IndexError as error:
        raise RefusedError(404, f"There is no {error}.") from error
    except (InputError, OSError, MemoryError) as error:
        raise RefusedError(422, explain_failure(error, "this case").reason) from error


async def read_body(request: Request, most: int = MOST_BODY) -> bytes:
    """Return the body, which may be neither large nor slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise RefusedError(413, f"A body may have {most} bytes.")
    except TimeoutError as error:
        raise RefusedError(408, f"The body did not arrive within {BODY_SECONDS} seconds.") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "The body ended early.") from error
    return body


def _to_json(record: object) -> Response:
    return JSONResponse(finite_or_null(to_plain(record)))


def _serve(file: PageFile) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        return _send_file(file, request)

    return serve


def _serve_static(page: PageFiles) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        file = page.files.get(request.path_params["name"])
        if file is None or request.path_params["digest"] != page.sha256:
            raise RefusedError(404, "There is no such file.")
        return _send_file(file, request, {"cache-control": FOREVER})

    return serve


def _accepts_gzip(request: Request) -> bool:
    names = [name.strip().lower() for name in request.headers.get("accept-encoding", "").split(",")]
    return "gzip" in names  # a weight, as in gzip;q=0, is not what browsers send, and gets the plain file


def _send_file(file: PageFile, request: Request, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """Send a file of the page, as gzip to those that read it."""
    is_packed = _accepts_gzip(request)
    packing = {"content-encoding": "gzip"} if is_packed else {}
    content = file.packed if is_packed else file.content
    return Response(
        content, headers={"content-type": file.content_type, "vary": "accept-encoding", **packing, **headers}
    )


async def _explain_refusal(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, RefusedError) else 500
    headers = {"connection": "close"} if status in (408, 413) else {}
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers)


async def _explain_unread(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "The mask was not read yet."}, status_code=503)


async def _explain_missing(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "There is no such page."}, status_code=404)


async def _explain_bug(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": explain_failure(error, "this page").reason}, status_code=500)

"""Checks on every request, before any other code sees it, and headers of every answer.

A page of another site that is open in the same browser can send requests to this server, and another user of the
machine can connect to it. The order of the checks:

1. The method is GET, HEAD, POST or PUT.
2. ``Host`` is the address that the server listens on. Another name may lead to it (DNS rebinding).
3. ``Sec-Fetch-Site``, if the browser sends it, is that of this page, or of no page; only the empty page itself may be
   opened by a link.
4. A request that changes something has the ``Origin`` of this page.
5. Whatever shows data has the session's cookie. The page gets it in exchange for the token behind the ``#`` of the
   printed address, which browsers never send to a server.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=(), payment=()",
}
CHANGES_NOTHING = ("GET", "HEAD")
METHODS = (*CHANGES_NOTHING, "POST", "PUT")
PRIVATE = "/api/"
"""Start of the paths that need the cookie."""
NO_STORE = "no-store"
UNREAD_BYTES = 64 << 10
"""Bytes of a refused body that are read, so that its sender reads the answer."""
UNREAD_SECONDS = 1
"""Time for them to arrive."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may use the server."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16), repr=False)
    """128 random bits, in the printed address."""
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Value of the cookie."""

    @property
    def cookie(self) -> str:
        """Return the cookie's name. Cookies do not tell ports apart, so that each server has a name of its own."""
        return f"slicemill-{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the values of ``Host`` that are accepted."""
        return tuple(f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]"))

    @property
    def url(self) -> str:
        """Return the address to open, with the token."""
        return f"http://127.0.0.1:{self.port}/#{self.token}"

    def accepts_token(self, token: bytes) -> bool:
        """Return whether this is the token; the time that it takes does not depend on the answer."""
        return hmac.compare_digest(token, self.token.encode())

    def accepts_cookie(self, header: str) -> bool:
        """Return whether a header ``Cookie`` has the session."""
        try:
            morsel = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self.session.encode())


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request is refused."""

    status: int
    reason: str


class Guard:
    """ASGI middleware that refuses requests, and adds headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _add_headers(message.get("headers", []))
            await send(message)

        refusal = check_request(scope, self._access)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        await read_away(receive)
        body = json.dumps({"error": refusal.reason}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]  # fmt: skip
        await send_with_headers({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send_with_headers({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def read_away(receive: Receive, most: int = UNREAD_BYTES) -> None:
    """Read the rest of a small body and forget it.

    A connection that is closed while bytes lie unread is reset, and the answer may be lost on the way (RFC 9112, 9.6).
    """
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(UNREAD_SECONDS):
            while read < most:
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def check_request(scope: Scope, access: Access) -> Refusal | None:
    """Return why a request is refused; None if it is not."""
    headers = scope["headers"]
    if scope["method"] not in METHODS:
        return Refusal(status=405, reason="This method is not known here.")
    host = _only(headers, b"host")
    if host not in access.hosts:
        return Refusal(status=421, reason="This server answers only at the address that slicemill printed.")
    is_page = scope["path"] == "/" and scope["method"] in CHANGES_NOTHING
    if (_only(headers, b"sec-fetch-site") or "none") not in ("same-origin", "none") and not (
        is_page and _only(headers, b"sec-fetch-mode") == "navigate"
    ):
        return Refusal(status=403, reason="Another page may not use this server.")
    if scope["method"] not in CHANGES_NOTHING and _only(headers, b"origin") != f"http://{host}":
        return Refusal(status=403, reason="Another page may not change anything here.")
    if scope["path"].startswith(PRIVATE) and not access.accepts_cookie(_only(headers, b"cookie") or ""):
        return Refusal(status=401, reason="Open the address that slicemill printed, with all that follows the #.")
    return None


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return a header; None if it is absent, empty if it occurs more than once."""
    values = [value for key, value in headers if key.lower() == name]
    if len(values) > 1:
        return ""
    return values[0].decode("latin-1") if values else None


def _add_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    names = {name.lower() for name, _ in headers}
    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    if b"cache-control" not in names:
        added.append((b"cache-control", NO_STORE.encode()))
    return [*headers, *added]

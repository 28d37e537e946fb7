"""The files of the page. Scripts and styles lie under a path with their common hash, so that they never change."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
START_SCREEN = "start.html"
"""What the page of `slicemill serve` has before the viewer."""
START_PLACE = "<!-- start screen -->"
VIEW_SCRIPT, START_SCRIPT = "/static/HASH/main.js", "/static/HASH/serve.js"
PLACEHOLDER = "/static/HASH/"
"""Start of the paths in the page, before the hash is known."""
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    content_type: str

    @cached_property
    def packed(self) -> bytes:
        """Return the content as gzip, which every browser reads."""
        return gzip.compress(self.content, mtime=0)


@dataclass(frozen=True, kw_only=True)
class PageFiles:
    """The page and the files that it loads."""

    index: PageFile
    sha256: str
    """Part of the path of `files`."""
    files: dict[str, PageFile]
    """By name. A name is only looked up here, so that no path leads out of the folder."""


def read_page_files(folder: Path = FOLDER, *, has_start: bool = False) -> PageFiles:
    """Read the page's files; with the start screen of `slicemill serve`, or without."""
    found = {
        path.name: PageFile(path.read_bytes(), TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in TYPES
    }
    index, start = found.pop(INDEX), found.pop(START_SCREEN)
    sha256 = hashlib.sha256()
    for name, file in found.items():
        sha256.update(name.encode() + b"\0" + hashlib.sha256(file.content).digest())
    digest = sha256.hexdigest()[:16]
    page = index.content.replace(START_PLACE.encode(), start.content if has_start else b"")
    if has_start:
        page = page.replace(VIEW_SCRIPT.encode(), START_SCRIPT.encode())
    content = page.replace(PLACEHOLDER.encode(), f"/static/{digest}/".encode())
    return PageFiles(index=PageFile(content, index.content_type), sha256=digest, files=found)

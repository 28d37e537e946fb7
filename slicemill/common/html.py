"""Self-contained HTML pages: sortable tables, embedded pictures, no request to any server."""

import base64
import functools
import hashlib
from pathlib import Path

import jinja2
import markupsafe

from slicemill.common.documents import to_plain
from slicemill.common.scripts import join_scripts
from slicemill.common.terminal import format_cell

PACKAGE = Path(__file__).parents[1]
VIEWER = PACKAGE / "web" / "report" / "report.js"
"""The viewer of slices in a page. It is read as text, and no code of the package `web` runs."""
CANDIDATES = PACKAGE / "web" / "report" / "candidates.js"
"""The list of candidates in a page."""


def render(template: str, **values: object) -> bytes:
    """Render an HTML page, UTF-8. All values are escaped, except `markupsafe.Markup`.

    Parameters
    ----------
    template : str
        Path of the template below the package, such as ``measure/lesions/case_page.html``. It extends
        ``common/templates/page.html`` and imports the parts it needs from ``common/templates/parts.html``.
    values : object
        Variables of the template. A missing variable is an error.
    """
    return _environment().get_template(template).render(values).encode()


@functools.cache
def _environment() -> jinja2.Environment:
    script = (PACKAGE / "common" / "templates" / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": _cell_text,
        "png_url": png_url,
        "jpeg_url": jpeg_url,
        "script_sha256": script_sha256,
        "plain": to_plain,
    }
    environment.globals |= {
        "page_script": markupsafe.Markup(script),  # noqa: S704 (a file of this package)
        "candidates_script": markupsafe.Markup(join_scripts(CANDIDATES)),  # noqa: S704 (files of this package)
        "viewer_script": markupsafe.Markup(join_scripts(VIEWER)),  # noqa: S704 (files of this package)
    }
    return environment


def script_sha256(script: str) -> str:
    """Return the hash of a script as a content security policy needs it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _cell_text(value: object) -> str:
    return value if isinstance(value, markupsafe.Markup) else format_cell(value)


def png_url(png: bytes) -> str:
    """Return a PNG as a ``data:`` URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def jpeg_url(jpeg: bytes) -> str:
    """Return a JPEG as a ``data:`` URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"

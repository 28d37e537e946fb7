"""Self-contained HTML pages: sortable tables, embedded pictures, no request to any server."""

import base64
import functools
import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
import markupsafe

from slicemill.common.terminal import format_cell

Pairs = Iterable[tuple[str, object]]


class Markup(str):
    """HTML that a table takes as it is; whoever makes it has escaped what it holds."""

    __slots__ = ()


PACKAGE = Path(__file__).parents[1]
SCRIPT = (PACKAGE / "common" / "templates" / "page.js").read_text(encoding="utf-8")
STYLE = (PACKAGE / "common" / "templates" / "page.css").read_text(encoding="utf-8")


def render(template: str, **values: object) -> bytes:
    """Render an HTML page, UTF-8. All values are escaped, except `markupsafe.Markup`.

    Parameters
    ----------
    template : str
        Path of the template below the package, such as ``measure/lesions/case_page.html``. It extends
        ``common/templates/page.html`` and imports the parts it needs from ``common/templates/parts.html``.
    values : object
        What the template shows. A name that the template uses and that is missing here is an error.
    """
    return _environment().get_template(template).render(values).encode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell_text, "png_url": png_url}
    environment.globals |= {
        "page_script": markupsafe.Markup(SCRIPT),  # noqa: S704 (our own file)
        "page_script_sha256": base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    }
    return environment


def _cell_text(value: object) -> str:
    return value if isinstance(value, markupsafe.Markup) else format_cell(value)


def png_url(png: bytes) -> str:
    """Return a PNG as a ``data:`` URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def text(value: object) -> str:
    """Return a value as it stands in a table, safe in HTML wherever it came from.

    >>> text("<b>&"), text(0.98765), text(None)
    ('&lt;b&gt;&amp;', '0.988', '-')
    """
    return html.escape(format_cell(value))


def paragraph(words: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{html.escape(words)}</p>"


def section(title: str, *parts: str) -> str:
    """Return pieces of HTML under a heading."""
    inside = "\n".join(part for part in parts if part)
    return f"<section><h2>{html.escape(title)}</h2>\n{inside}\n</section>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, sortable: bool = False) -> str:
    """Return rows under a header; numbers to the right, and sorted as numbers where it can be sorted."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, Markup):
        return f"<td>{value}</td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number" data-value="{value}">{text(value)}</td>'
    if value is None:
        return '<td class="number" data-value="">-</td>'
    return f"<td>{text(value)}</td>"


def pairs(items: Pairs) -> str:
    """Return names with their values."""
    rows = "".join(f'<tr><th scope="row">{html.escape(name)}</th><td>{text(value)}</td></tr>' for name, value in items)
    return f'<div class="wide"><table class="pairs"><tbody>{rows}</tbody></table></div>'


def cards(items: Pairs) -> str:
    """Return a few figures, large, each above what it is."""
    inside = "".join(f"<div><b>{text(value)}</b><span>{html.escape(name)}</span></div>" for name, value in items)
    return f'<div class="cards">{inside}</div>'


def commands(lines: Iterable[str]) -> str:
    """Return lines to be typed."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def picture(path: Path, alt: str) -> str:
    """Return a PNG file as a picture inside the page, which leads to the file beside it; empty without the file."""
    if not path.exists():
        return ""
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<a class="picture" href="{html.escape(path.name)}"><img alt="{html.escape(alt)}" src="{source}"></a>'


def document(title: str, body: str) -> bytes:
    """Return a whole page in UTF-8; its policy allows no script but its own, and no request."""
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n<script>{SCRIPT}</script></body></html>\n'
    return page.encode()

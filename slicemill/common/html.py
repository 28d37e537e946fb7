"""Pieces of a page that needs nothing but itself: tables that can be sorted, pictures inside, no request to anywhere."""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from slicemill.common.terminal import cell

Pairs = Iterable[tuple[str, object]]


class Markup(str):
    """HTML that a table takes as it is; whoever makes it has escaped what it holds."""

    __slots__ = ()


def text(value: object) -> str:
    """Return a value as it stands in a table, safe in HTML wherever it came from.

    >>> text("<b>&"), text(0.98765), text(None)
    ('&lt;b&gt;&amp;', '0.988', '-')
    """
    return html.escape(cell(value))


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


STYLE = """
:root { color-scheme: light; --ink: #1d2530; --dim: #5b6673; --line: #dde2e8; --soft: #f5f7f9; --blue: #2f6ea8; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: #fff;
  max-width: 1120px; margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2rem) 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 0.3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
p { margin: 0.4rem 0; max-width: 78ch; }
.note { color: var(--dim); font-size: 0.85rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.7rem; margin: 1.1rem 0; }
.cards div { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 0.6rem 0.8rem; }
.cards b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.cards span { color: var(--dim); font-size: 0.85rem; }
.wide { overflow-x: auto; margin: 0.6rem 0; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; overflow-wrap: normal; }
thead th { background: var(--soft); font-weight: 600; vertical-align: bottom; }
td.number { text-align: right; white-space: nowrap; }
.pairs th { font-weight: 400; color: var(--dim); white-space: nowrap; }
.pairs td { overflow-wrap: anywhere; }
.sortable th { cursor: pointer; }
.sortable td { white-space: nowrap; }
.sortable th:hover, .sortable th:focus { color: var(--blue); }
.sortable th[aria-sort=ascending]::after { content: " \\2191"; }
.sortable th[aria-sort=descending]::after { content: " \\2193"; }
.picture { display: block; margin: 0.6rem 0; }
.picture img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
figure.views { margin: 0.9rem 0; break-inside: avoid; }
figure.views figcaption { font-weight: 600; font-size: 0.9rem; }
figure.views .picture { overflow-x: auto; margin: 0.3rem 0; }
figure.views img { width: 100%; min-width: 680px; max-width: none; }
td .picture { margin: 0; min-width: 120px; }
.strip { display: block; width: 100%; height: auto; }
.histograms { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.histogram { width: 300px; max-width: 100%; height: auto; }
.chip { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin: 0 0.35em 0 0.9em;
  vertical-align: -0.05em; border: 1px solid #0003; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem 0.9rem; overflow-x: auto; font-size: 0.85rem; }
@page { margin: 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  h1 { font-size: 15pt; }
  h2 { font-size: 11.5pt; margin-top: 1.1rem; break-after: avoid; }
  p { max-width: none; }
  section, tr, .cards { break-inside: avoid; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(32mm, 1fr)); gap: 2mm; margin: 3mm 0; }
  .cards b { font-size: 13pt; }
  .cards span, .note, pre { font-size: 8pt; }
  .picture img { max-height: 210mm; max-width: 165mm; }
  section:has(figure.views), section:has(.sortable) { break-inside: auto; }
  figure.views img { min-width: 0; max-width: 100%; }
  td .picture img { max-width: 32mm; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.15rem 0.4rem; }
  thead th { white-space: normal; }
  pre { white-space: pre-wrap; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(one => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "") : down ? compare(b, a) : compare(a, b);
      [...body.rows].sort((a, b) => order(value(a, column), value(b, column))).forEach(row => body.append(row));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""

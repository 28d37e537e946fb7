"""The files of the page: small, typed, without anything that the policy forbids, and cached for ever."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from slicemill.web.page_files import FOLDER, read_page_files
from tests.web.served import serving

TSC = Path(__file__).parent / "node_modules" / "typescript" / "bin" / "tsc"
MOST_BYTES, MOST_SENT_BYTES = 120_000, 60_000
ONLY_UPLOADS = {
    "serve.js",
    "serve.css",
    "start.html",
    "drop.js",
    "picture.js",
    "job_view.js",
    "jobs_api.js",
    "nodules.js",
    "candidate_table.js",
}
"""Files that only the page of `slicemill serve` loads."""
OPTIONS = (
    "--noEmit --allowJs --checkJs --strict --noUnusedLocals --target es2022 --module es2022 "
    "--moduleResolution bundler --lib es2022,dom,dom.iterable"
)
REPORT = FOLDER.parent / "report"
FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setTimeout\(\s*[\"'`]"


def test_the_page_is_small():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"index.html", "main.js", "style.css"} <= set(sizes)
    assert sizes.keys() >= ONLY_UPLOADS
    assert sum(size for name, size in sizes.items() if name not in ONLY_UPLOADS) <= MOST_BYTES
    page = read_page_files(has_start=True)
    assert sum(len(file.packed) for file in (page.index, *page.files.values())) <= MOST_SENT_BYTES


def test_files_are_sent_packed_to_clients_that_unpack(entries):
    page = read_page_files()
    with serving(entries) as served, served.client(with_cookie=False) as client:
        path = f"/static/{page.sha256}/main.js"
        for accepted, packed in (("gzip, deflate, br", True), ("identity", False), ("gzip;q=0", False)):
            with client.stream("GET", path, headers={"accept-encoding": accepted}) as answer:
                data = b"".join(answer.iter_raw())
            assert ("content-encoding" in answer.headers) == packed
            assert answer.headers["vary"] == "accept-encoding"
            assert (gzip.decompress(data) if packed else data) == page.files["main.js"].content


def test_the_page_has_no_inline_script_style_or_foreign_address():
    for path in (*FOLDER.iterdir(), *REPORT.iterdir()):
        text = path.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
        assert not re.search(FORBIDDEN, text), path.name
        if path.suffix == ".html":
            assert not re.search(r"<style|<script(?![^>]*src=)|\son\w+=|\sstyle=", text)


def test_lines_are_short():
    paths = (*FOLDER.iterdir(), *REPORT.iterdir())
    long = [(path.name, line) for path in paths for line in path.read_text().splitlines() if len(line) > 120]
    assert long == []


def test_the_path_changes_with_every_file_and_a_file_is_cached_for_ever(tmp_path, entries):
    shutil.copytree(FOLDER, tmp_path / "page")
    (tmp_path / "page" / "dom.js").write_text("// another")
    assert read_page_files(tmp_path / "page").sha256 != read_page_files().sha256
    with serving(entries) as served, served.client(with_cookie=False) as client:
        page = client.get("/").text
        names = re.findall(r'"(/static/[^"]+)"', page)
        assert len(names) == 3
        for name in names:
            answer = client.get(name)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert client.get(re.sub(r"/static/\w+/", "/static/0123456789abcdef/", name)).status_code == 404


def check_types(folder):
    files = sorted(str(path) for path in (*folder.glob("*.js"), *(folder.parent / "report").glob("*.js")))
    return subprocess.run(["node", TSC, *OPTIONS.split(), *files], capture_output=True, text=True, check=False)


@pytest.mark.skipif(
    not TSC.exists() or not shutil.which("node"), reason="TypeScript is not here (npm install in tests/web)"
)
def test_the_types_of_the_page_are_right(tmp_path):
    if not TSC.exists() or not shutil.which("node"):
        pytest.skip("TypeScript is not here (npm install in tests/web)")
    done = check_types(FOLDER)
    assert done.returncode == 0, done.stdout
    shutil.copytree(FOLDER, tmp_path / "page")
    shutil.copytree(REPORT, tmp_path / "report")
    with (tmp_path / "page" / "heat.js").open("a") as file:
        file.write('\nsliceAt("half", 3);\n')
    assert "not assignable to parameter of type 'number'" in check_types(tmp_path / "page").stdout

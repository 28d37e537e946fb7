"""The built documentation: links resolve, nothing comes from another host, and its search answers twelve questions."""

import json
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import quote

import pytest
import typer

from docs.hooks import walk_commands
from slicemill import cli
from tests.docs.pages import HERE

QUESTIONS = {
    "my own labels": "guides/own-labels.html",
    "DICOM": "guides/dicom.html",
    "more GPUs": "guides/many-gpus.html",
    "S3 bucket": "guides/buckets.html",
    "resume a run": "guides/resume.html",
    "what is in the store": "reference/store-format.html",
    "every column": "reference/tables.html",
    "read in MONAI": "guides/read-store.html",
    "nnU-Net format": "guides/export-datasets.html",
    "SLURM training": "guides/slurm.html",
    "tumor_confidence": "reference/json.html",
    "failures.jsonl": "guides/resume.html",
    "delete when done": "guides/clean-up.html",
}
"""What a new user types, and the page with the answer."""
SENTENCES = {
    "How do I train on my own labels?": "guides/own-labels.html",
    "My DICOM?": "guides/dicom.html",
    "More GPUs?": "guides/many-gpus.html",
    "S3?": "guides/buckets.html",
    "Resume?": "guides/resume.html",
    "What is in the store and in each column?": "reference/tables.html",
    "How do I read it in MONAI?": "guides/read-store.html",
    "How do I get nnU-Net's format?": "guides/export-datasets.html",
    "SLURM for training?": "guides/slurm.html",
    "What does tumor_confidence mean?": "reference/json.html",
    "How do I read failures.jsonl?": "guides/resume.html",
    "What do I delete when I am done?": "guides/clean-up.html",
}
"""The same questions as whole sentences, for the search of a browser."""
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SHOWN = 3
"""Pages that a reader looks at."""


@pytest.fixture(scope="session")
def site(shared):
    """The built documentation."""

    def build(folder):
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
            cwd=HERE, env={**os.environ, "PYTHONPATH": str(HERE), "NO_MKDOCS_2_WARNING": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    return shared("site", build)


@pytest.fixture(scope="session")
def search(site):
    """Search the index as the pages do: OR of words, a word in a title weighs more. Return pages, the best first."""
    from lunr import lunr

    documents = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    fields = [{"field_name": "title", "boost": 10}, "text"]
    index = lunr(ref="location", fields=fields, documents=documents)

    def find(words):
        return list(dict.fromkeys(found["ref"].split("#")[0] for found in index.search(re.sub(r"[-:^~+]", " ", words))))

    return find


def test_links_and_anchors_resolve_and_every_page_is_in_the_navigation(site):
    """mkdocs in strict mode checks both; the site has every page."""
    sources = [path for suffix in ("md", "ipynb") for path in (HERE / "docs").rglob(f"*.{suffix}")]
    pages = {path.relative_to(HERE / "docs").with_suffix(".html") for path in sources}
    assert {page for page in pages if not (site / page).exists()} == set()


def test_links_of_the_readme_resolve():
    for target in re.findall(r"\]\(([^)]+)\)", (HERE / "README.md").read_text()):
        path, _, anchor = target.partition("#")
        assert (HERE / path).exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", (HERE / path).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_pages_need_no_other_host(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^\"> ]*", text) == [], page


def test_the_search_has_what_it_needs_without_a_server(site):
    script = (site / "search" / "search_index.js").read_text()
    assert json.loads(script.removeprefix("var __index = ")) == json.loads(
        (site / "search" / "search_index.json").read_text()
    )
    assert "IFrameWorker" in (site / "assets" / "iframe-worker.js").read_text()


def search_in_browser(site, profile, question):
    """Open a page from the disk with a question in its search; return the pages that it lists, the best first."""
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    page = f"{(site / 'start' / 'demo.html').as_uri()}?q={quote(question)}"
    done = subprocess.run(
        [*words, "--virtual-time-budget=20000", "--dump-dom", page], capture_output=True, text=True, check=True
    )
    links = re.findall(r'<a href="([^"?#]*)[^"]*" class="md-search-result__link"', done.stdout)
    return list(dict.fromkeys(link.removeprefix(f"{site.as_uri()}/") for link in links))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_without_a_server_finds_the_answers(site, tmp_path):
    found = {one: search_in_browser(site, tmp_path, one)[:SHOWN] for one in SENTENCES}
    assert {one: pages for one, pages in found.items() if SENTENCES[one] not in pages} == {}


def test_the_pages_show_no_path_of_the_machine(site):
    for page in site.rglob("*.html"):
        assert str(HERE) not in page.read_text(), page


@pytest.mark.parametrize(("question", "page"), QUESTIONS.items())
def test_the_search_leads_to_the_answer(search, question, page):
    assert page in search(question)[:SHOWN]


def test_the_search_leads_to_a_command(search):
    assert search("slicemill evaluate")[0] in ("reference/commands.html", "reference/metrics.html")


def test_the_commands_page_lists_every_option(site):
    """But for hidden ones, which are old names, and for options of the groups."""
    text = (site / "reference" / "commands.html").read_text()
    listed = 0
    for path, command in walk_commands("slicemill", typer.main.get_command(cli.commands())):
        for param in (param for param in command.params if not param.hidden and param.name != "help"):
            assert f"<code>{param.opts[0]}</code>" in text, (path, param.name)
            listed += 1
    assert listed > 200

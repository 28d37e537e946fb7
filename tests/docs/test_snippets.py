"""The commands and snippets of each page run, from top to bottom, on phantoms and with short trainings."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.pages import HERE, INPUTS, PAGES, Block, name_of, read_blocks, read_inputs

RUN = [page for page in PAGES if any(block.is_run for block in read_blocks(page))]
SCRIPT = HERE / "docs" / "reference" / "model-contract.md"
"""Its script takes arguments, so a test of its own runs it."""
SHORTER = {"--max-minutes 60": "--max-minutes 0.05 --width 4"}


@pytest.fixture
def folder(tmp_path, collection, stored, trained, model):
    """A folder, and a function that puts inputs into it."""
    sources = dict(zip(INPUTS, (collection, stored, trained, model), strict=True))

    def prepare(wanted):
        for name, source in wanted.items():
            copy = shutil.copytree if sources[source].is_dir() else shutil.copy
            copy(sources[source], tmp_path / name)
        return tmp_path

    return prepare


@pytest.fixture
def environment(tmp_path_factory):
    """An environment in which `slicemill` and `infer` are commands of this checkout."""
    programs = tmp_path_factory.mktemp("bin")
    for name, words in (("slicemill", "slicemill"), ("infer", "slicemill infer")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {words} "$@"\n')
        program.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(HERE), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def run_block(block, folder, environment):
    text = block.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    words = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    return subprocess.run([*words, text], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN if page != SCRIPT], ids=name_of)
def test_a_page_from_top_to_bottom(page, folder, environment):
    place = folder(read_inputs(page))
    for block in read_blocks(page):
        if block.is_run:
            done = run_block(block, place, environment)
            assert done.returncode == 0, (block.text, done.stdout[-1000:], done.stderr[-3000:])


def test_the_pages_that_a_user_needs_first_are_run():
    assert {"README.md", "docs/start/first-scans.md", "docs/guides/lits.md", "docs/guides/read-store.md"} <= {
        name_of(page) for page in RUN
    }


@pytest.mark.slow
def test_a_block_that_fails_is_found(tmp_path, environment):
    for language, text in (("sh", "false\ntrue\n"), ("sh", "slicemill ingest nowhere/ store/\n"), ("python", "1/0\n")):
        block = Block(language=language, title="", text=text)
        assert run_block(block, tmp_path, environment).returncode != 0


@pytest.mark.slow
def test_the_script_without_slicemill_gives_the_same_labels(model, collection, tmp_path):
    """Without this checkout on its path; scans of the model's own size, in axis orders of all kinds."""
    import nibabel as nib
    import numpy as np

    import slicemill

    (script,) = [block.text for block in read_blocks(SCRIPT) if block.language == "python"]
    assert len(script.splitlines()) <= 20
    assert max(map(len, script.splitlines())) <= 120
    assert "slicemill" not in re.findall(r"import (\w+)", script)
    (tmp_path / "script.py").write_text(script)
    own = [
        path
        for path in sorted(collection.glob("volume-*"))
        if nib.as_closest_canonical(nib.load(path)).shape[:2] == (64, 64)
    ]
    assert len({nib.aff2axcodes(nib.load(path).affine) for path in own}) > 2
    for source in own:
        done = subprocess.run([sys.executable, "script.py", str(model), str(source), "out.nii.gz"],
                              cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        slicemill_label = slicemill.segment(source, model).label_lps
        mask = nib.load(tmp_path / "out.nii.gz")
        script_label = np.asarray(nib.as_closest_canonical(mask).dataobj)[::-1, ::-1].transpose(2, 1, 0)
        assert mask.shape == nib.load(source).shape
        assert np.array_equal(script_label, slicemill_label)
        assert "research use only" in done.stdout

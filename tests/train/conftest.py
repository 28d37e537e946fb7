"""The curves of a run take most of the time of a training of few steps: only tests of the curves draw them."""

import shutil

import pytest
from PIL import Image

from slicemill.train.report import curves


class SmallPicture:
    """In place of a figure of matplotlib."""

    def savefig(self, path, **_):
        Image.new("L", (1, 1)).save(path, format="PNG")


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Write one pixel in place of the curves, but in tests that ask for `drawn_curves`."""
    if "drawn_curves" not in request.fixturenames:
        monkeypatch.setattr(curves, "make_figure", lambda *_: SmallPicture())


@pytest.fixture
def drawn_curves():
    """Let the trainings and reports of a test draw their curves."""


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of the trained run, for tests that claim it: other processes of tests share the first one."""
    return shutil.copytree(trained, tmp_path / "own_run")

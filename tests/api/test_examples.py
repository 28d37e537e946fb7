"""The examples in the docstrings of public names run, on phantoms. Their figures are those of other scans."""

import doctest
import inspect
import shutil
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import slicemill
from slicemill.train.config import Config

ELSEWHERE = ("s3://", "monai.", *(() if find_spec("pandas") else ("manifest()",)))
"""Examples that need a bucket or a package that is not installed."""
SHORTER = {
    "epochs=100": "epochs=1, steps=1, width=4, depth=3, batch=2, precision='fp32'",
    "volume-17": "volume-1",
    "num_workers=4": "num_workers=1",
}
"""What is written in the examples -> what the test runs."""


def public():
    return [name for name in slicemill.__all__ if name not in ("__version__", "errors", "metrics")]


def examples_of(name):
    """Return the examples of a public name and of its methods, those that doctest skips too."""
    documented = getattr(slicemill, name)
    finder = doctest.DocTestFinder()
    found = finder.find(documented, name=name, module=inspect.getmodule(documented), globs={})
    return [example for test in found for example in test.examples]


@pytest.fixture(scope="module")
def folder(collection, stored, trained, model, tmp_path_factory):
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(collection, folder / "lits")
    shutil.copytree(stored, folder / "lits-store")
    shutil.copytree(trained, folder / "runs" / "first")
    shutil.copy(model, folder / "liver.onnx")
    (folder / "scans").mkdir()
    (folder / "segmented").mkdir()
    image = nibabel.load(next(collection.glob("volume-2.nii*")))
    nibabel.save(image, folder / "ct.nii.gz")
    nibabel.save(image, folder / "scans" / "ct.nii.gz")
    for mask in collection.glob("segmentation-[12].nii*"):
        shutil.copy(mask, folder / "segmented")
    return folder


@pytest.fixture
def names(folder, monkeypatch):
    """The names that the examples take from the lines before them."""
    monkeypatch.chdir(folder)
    labels = {"liver": 1, "tumor": 2}
    opened = slicemill.Model("liver.onnx", provider="cpu")
    return {
        "slicemill": slicemill,
        "InputError": slicemill.InputError,
        "np": np,
        "nibabel": nibabel,
        "torch": torch,
        "Path": Path,
        "Config": Config,
        "model": opened,
        "store": slicemill.open_store("lits-store"),
        "hu": np.zeros((9, 64, 64), dtype=np.int16),
        "find_lesions": slicemill.find_lesions,
        "result": opened.segment("ct.nii.gz"),
        "first": slicemill.evaluate_masks("segmented", "lits", labels=labels),
        "second": slicemill.evaluate_masks("segmented", "lits", labels=labels),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", public())
def test_the_examples_of_a_public_name_run(name, names, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    ran = 0
    for example in examples_of(name):
        source = example.source
        for long, short in SHORTER.items():
            source = source.replace(long, short)
        if name == "train_network" or "train_network" in source:
            shutil.rmtree("runs/first", ignore_errors=True)
        if any(word in source for word in ELSEWHERE):
            continue
        exec(compile(source, f"example of {name}", "single"), names)  # noqa: S102 (our own examples)
        ran += 1
    assert ran or name == "TrainedRun"

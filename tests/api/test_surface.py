"""What `import slicemill` gives: names, types, cost, and examples."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import slicemill
from slicemill.common import errors
from slicemill.common.extras import name_missing_extras
from slicemill.infer.cli import infer
from slicemill.infer.request import InferRequest
from slicemill.ingest.cli import ingest
from slicemill.ingest.request import IngestRequest
from slicemill.measure.cli import evaluate, measure
from slicemill.measure.requests import EvaluateRequest, MeasureRequest
from slicemill.train.cli import export
from slicemill.train.config import Config
from slicemill.train.export.request import ExportRequest
from slicemill.train.settings import TrainSettings

HERE = Path(__file__).parents[2]
HEAVY = ("numpy", "torch", "dask", "onnxruntime", "pandas", "nibabel", "pyarrow", "typer")
SCRIPT = """
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

import slicemill


def use(folder: Path, hu: npt.NDArray[np.float32]) -> float:
    report = slicemill.ingest_scans(folder, "store", labels={"liver": 1, "tumor": 2}, workers=2)
    done: int = report.count("done")
    store = slicemill.open_store("store")
    ids: list[str] = list(store)
    case = store[ids[0]]
    affine: npt.NDArray[np.float64] = case.affine
    run = slicemill.train_network("store", "run", epochs=3, augment=0.5)
    written = slicemill.export_model(run.run, "liver.onnx", probability=True)
    model = slicemill.Model("liver.onnx", provider="cpu")
    result: slicemill.Segmentation = model.segment(hu, spacing=(5, 1, 1), axes="zyx-lps")
    label: npt.NDArray[np.uint8] = result.label
    many: Iterator[slicemill.Segmentation] = model.segment_many(sorted(folder.glob("*.nii")))
    for each in model.segment_many([case], errors="return"):
        if isinstance(each, slicemill.InputError):
            print(each.reason, each.where)
        else:
            print(each.save("out.nii.gz"))
    dataset = slicemill.SliceDataset(store, context=3, size=512)
    shape = dataset[0]["image"].shape
    summary = slicemill.infer_scans("liver.onnx", [folder, "more"], "out", devices=(0, 1), retry_failed=True)
    short: slicemill.Segmentation = slicemill.segment(hu, "liver.onnx", spacing=(5, 1, 1), axes="zyx-lps")
    print(summary.count("done"), [one.reason for one in summary.failures], short.lesions)
    lesions = slicemill.find_lesions(label == 2, affine, axes="zyx-lps")
    print(done, written, many, shape, [lesion.volume_ml for lesion in lesions], store.manifest("arrow").num_rows)
    return slicemill.metrics.dice(label == 1, label == 2)
"""
WRONG = {
    "slicemill.train_network('store', 'run', epoch=3)": "Unexpected keyword argument",
    "slicemill.train_network('store', 'run', epochs='3')": "incompatible type",
    "slicemill.Model('m.onnx', provider='gpu')": "incompatible type",
    "slicemill.Model('m.onnx').segment('a.nii').labels['a'].lower()": "has no attribute",
    "slicemill.ingest_scans('a', 'b', geometry='trust')": "incompatible type",
    "slicemill.segments": "has no attribute",
}


def python(code):
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def public():
    return [name for name in slicemill.__all__ if name not in ("__version__", "errors", "metrics")]


def test_importing_slicemill_imports_nothing_else():
    assert python(f"import sys, slicemill; print([name for name in {HEAVY} if name in sys.modules])") == "[]"
    loaded = python(
        "import sys, slicemill; print(sorted(name for name in sys.modules if name.startswith('slicemill')))"
    )
    assert loaded == "['slicemill']"


@pytest.mark.parametrize(
    ("use", "absent"),
    [
        ("slicemill.open_store; slicemill.find_lesions; slicemill.metrics; slicemill.InputError", "torch"),
        ("slicemill.Model; slicemill.segment; slicemill.ingest_scans; slicemill.VolumeItems", "torch"),
        ("slicemill.Model; slicemill.open_store; slicemill.ingest_scans; slicemill.VolumeItems", "dask"),
        ("slicemill.Model; slicemill.open_store; slicemill.SliceDataset", "onnxruntime"),
        ("slicemill.Model; slicemill.open_store; slicemill.SliceDataset; slicemill.metrics", "pandas"),
        ("slicemill.errors; slicemill.InputError", "numpy"),
    ],
)
def test_a_name_imports_only_what_it_needs(use, absent):
    assert python(f"import sys, slicemill; {use}; print({absent!r} in sys.modules)") == "False"


def test_every_public_name_exists_and_survives_the_import_of_packages():
    assert set(slicemill.__all__) <= set(dir(slicemill))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", slicemill.__version__)
    for package in ("ingest.pipeline", "train.loop", "measure.requests", "infer.single", "store.reader"):
        importlib.import_module(f"slicemill.{package}")
    for name in public():
        assert callable(getattr(slicemill, name)), name
    names = {}
    exec(f"from slicemill import {', '.join(slicemill.__all__)}", names)  # noqa: S102 (our own names)
    assert names["ingest_scans"] is slicemill.ingest_scans
    with pytest.raises(AttributeError, match="has no attribute 'segments'"):
        slicemill.segments  # noqa: B018


def test_type_checkers_and_python_see_the_same_names():
    tree = ast.parse((HERE / "slicemill" / "__init__.py").read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(slicemill.__all__)
    assert sorted(slicemill.__all__) == sorted(set(slicemill.__all__))


def test_all_errors_are_in_one_module():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert set(slicemill.errors.__all__) == kinds
    assert slicemill.InputError is slicemill.errors.InputError is errors.InputError


@pytest.mark.parametrize("name", public())
def test_a_public_name_is_documented(name):
    documented = getattr(slicemill, name)
    text = inspect.getdoc(documented)
    assert text
    if name not in ("InputError", "TrainedRun"):
        assert ">>>" in text, name
    if inspect.isclass(documented):
        for method, value in vars(documented).items():
            if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(value), f"{name}.{method}"


def defaults_of(function):
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD}


def plain(value):
    return None if value in (inspect.Parameter.empty, MISSING) else value


@pytest.mark.parametrize(
    ("function", "options", "command", "only_in_the_command"),
    [
        (slicemill.ingest_scans, IngestRequest, ingest, {"dry_run", "json"}),
        (slicemill.evaluate_masks, EvaluateRequest, evaluate, {"against", "json"}),
        (slicemill.export_model, ExportRequest, export, {"check", "segmentation", "mirror"}),  # of a classifier
    ],
)
def test_function_options_and_command_have_the_same_names_and_defaults(function, options, command, only_in_the_command):
    of_options = {field.name: plain(field.default) for field in fields(options)}
    of_function = {name: plain(value) for name, value in defaults_of(function).items()}
    of_command = {name: plain(value) for name, value in defaults_of(command).items()}
    assert of_function == of_options
    assert {name: value for name, value in of_command.items() if name not in only_in_the_command} == of_options


def test_measuring_takes_every_option_of_the_command():
    """The options of DICOM results are one field of the request."""
    of_function = {name: plain(value) for name, value in defaults_of(slicemill.measure_masks).items()}
    of_command = {name: plain(value) for name, value in defaults_of(measure).items()}
    assert of_function == {name: value for name, value in of_command.items() if name != "json"}
    of_request = {field.name: plain(field.default) for field in fields(MeasureRequest) if field.name != "dicom"}
    assert of_request.items() <= of_function.items()


def test_segmentation_in_bulk_takes_every_option_of_the_command():
    """But for those of a terminal: lists of inputs, a watched folder, a plan, a summary on standard output."""
    of_command = {name: plain(value) for name, value in defaults_of(infer).items()}
    of_terminal = {"lists", "watch", "settle", "dry_run", "json"}
    assert of_command == {field.name: plain(field.default) for field in fields(InferRequest)}
    assert {name: plain(value) for name, value in defaults_of(slicemill.infer_scans).items()} == {
        name: value for name, value in of_command.items() if name not in of_terminal
    }


@pytest.mark.parametrize(
    "use",
    [
        "slicemill.SliceDataset",
        "from slicemill import SliceDataset",
        "slicemill.train_network('store', 'run')",
        "slicemill.export_model('run', 'model.onnx')",
        "slicemill.check_model('run', 'model.onnx')",
    ],
)
def test_without_torch_the_error_names_the_installation(use):
    code = f"import sys; sys.modules['torch'] = None; import slicemill\ntry:\n    {use}\n"
    code += "except slicemill.InputError as error: print(error)"
    assert python(code) == "torch is not installed. Run: pip install 'slicemill[train]'"


def test_an_import_error_of_another_package_is_not_an_error_of_the_user():
    with pytest.raises(ImportError, match="spelt"), name_missing_extras():
        raise ModuleNotFoundError("No module named 'spelt'", name="spelt")


def test_training_takes_every_setting_of_the_configuration():
    assert typing.get_type_hints(TrainSettings) == typing.get_type_hints(Config)


@pytest.mark.slow
def test_a_users_script_is_typed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    lines = [f"import slicemill\n{line}\n" for line in WRONG]
    for number, line in enumerate(lines):
        (tmp_path / f"wrong{number}.py").write_text(line)
    files = [str(tmp_path / name) for name in ("script.py", *(f"wrong{number}.py" for number in range(len(lines))))]
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n")
    words = [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"), "--follow-imports", "silent"]
    done = subprocess.run([*words, *files], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={"MYPYPATH": str(HERE), "PATH": "/usr/bin"})  # fmt: skip
    assert "script.py" not in done.stdout, done.stdout
    for number, why in enumerate(WRONG.values()):
        (found,) = [line for line in done.stdout.splitlines() if f"wrong{number}.py" in line and ": error:" in line]
        assert why in found, found

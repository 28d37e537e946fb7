"""The distributions: their contents, and that installed commands never run files of the user."""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
PACKAGES = ("slicemill", "store", "ingest", "train", "infer", "measure", "bench")
NOT_INSTALLED = ("slicemill/bench/results/", "slicemill/bench/gpu/", "slicemill/bench/sarcoma.toml")
USER_FILES = ("train.py", "infer.py", "store.py", "ingest.py", "measure.py", "bench.py", "json.py", "typer.py")
"""Files of a user with the names of slicemill's packages and of modules that slicemill imports."""

pytestmark = pytest.mark.slow


def run(*words, cwd, path=None, check=True):
    """Run a program without the Python path of these tests, and return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def source_files():
    """Return the files of all packages by their installed paths."""
    files = {}
    for package in PACKAGES:
        for path in (HERE / package).rglob("*"):
            name = path.relative_to(HERE).as_posix()
            name = name if package == "slicemill" else f"slicemill/{name}"
            if path.is_file() and "__pycache__" not in path.parts and not name.startswith(NOT_INSTALLED):
                files[name] = path
    return files


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """An interpreter with setuptools."""
    if importlib.util.find_spec("setuptools"):
        return sys.executable
    folder = tmp_path_factory.mktemp("builder")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "setuptools>=77", cwd=folder)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def distributions(builder, tmp_path_factory):
    """The wheel and the source distribution, built from a copy of the checkout."""
    source = tmp_path_factory.mktemp("build") / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "__pycache__", "build", "dist", "*.egg-info", ".*_cache", "demo", "real"
    )
    shutil.copytree(HERE, source, symlinks=True, ignore=ignored)
    code = "from setuptools import build_meta as b; print(b.build_wheel('dist'), b.build_sdist('dist'))"
    run(builder, "-c", code, cwd=source)
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def wheel(distributions):
    return distributions[0]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment with the wheel; its dependencies are those of this interpreter."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    python = folder / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # without the .pth files in there
    shown = run(python, "-c", "import slicemill; print(slicemill.__file__)", cwd=folder)
    assert Path(shown.strip()).is_relative_to(own), "the editable installation must not be imported"
    return folder / "bin"


@pytest.fixture
def trapped(tmp_path):
    """A working folder with files of a user, each of which leaves a mark when it is executed."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in USER_FILES:
        mark = folder / f"{name}.executed"
        (folder / name).write_text(f"open({str(mark)!r}, 'w').close()\n")
    yield folder
    assert sorted(path.name for path in folder.glob("*.executed")) == []


def test_the_wheel_holds_one_package_with_all_its_files_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        top = {name.split("/")[0] for name in infos}
        assert top == {"slicemill", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
        for name, path in source_files().items():
            assert archive.read(name) == path.read_bytes(), name
    assert not any((info.external_attr >> 16) & 0o170000 == 0o120000 for info in infos.values()), "no links"
    names = {name for name in infos if name.startswith("slicemill/")}
    assert names == set(source_files())
    assert "slicemill/py.typed" in names
    assert {Path(name).suffix for name in names} >= {".html", ".css", ".js", ".toml", ".txt"}


@pytest.mark.parametrize(
    "words",
    [
        ("slicemill", "--help"),
        ("infer", "--help"),
        ("slicemill", "demo", "--help"),
        ("slicemill", "phantom", "scans", "--cases", "1", "--size", "32"),
        ("python", "-P", "-m", "slicemill", "--help"),
        ("python", "-P", "-c", "from slicemill.demo import run_command; run_command('ingest', '--help')"),
        ("python", "-P", "-c", "from slicemill.bench.records.suite import run_stage; assert not run_stage(['--help'])"),
    ],
    ids=" ".join,
)
def test_a_command_runs_no_file_of_the_user(installed, trapped, words):
    run(installed / words[0], *words[1:], cwd=trapped)


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "slicemill", "--help"),
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "slicemill", "train", "--help"),
    ],
    ids=["python", "torchrun"],
)
def test_a_module_runs_no_file_of_the_user_with_the_name_of_a_package(installed, trapped, words):
    """With ``-m``, Python searches the working folder first, where a user's file could replace a library."""
    for name in ("json.py", "typer.py"):
        (trapped / name).unlink()
    run(installed / "python", *words, cwd=trapped)


def test_a_script_of_the_user_named_infer_segments_a_scan(installed, trapped, collection, model):
    for name in ("json.py", "typer.py"):
        (trapped / name).unlink()
    (trapped / "infer.py").write_text(
        "import sys, slicemill\n"
        "result = slicemill.segment(*sys.argv[1:], provider='cpu')\n"
        "print(result.label.ndim, result.report.tumor_found)\n"
    )
    shown = run(installed / "python", "infer.py", collection / "volume-0.nii", model, cwd=trapped)
    assert shown.startswith("3 ")


def test_ingest_starts_workers_that_run_no_file_of_the_user(installed, trapped, collection):
    shown = run(installed / "slicemill", "ingest", collection, "out", "--workers", "2", cwd=trapped)
    assert "6 cases: 6 done" in shown


@pytest.mark.timeout(1800)
def test_a_fresh_installation_of_the_wheel_runs_the_demo(wheel, tmp_path):
    """The way in without make: pip install in a new environment, then `slicemill demo` in any folder."""
    venv.create(tmp_path / "env", with_pip=True)
    tools, work = tmp_path / "env" / "bin", tmp_path / "work"
    work.mkdir()
    pip = (tools / "python", "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    run(*pip, "-c", HERE / "constraints.txt", f"{wheel}[ingest,train,cpu]", cwd=work)
    shown = run(tools / "slicemill", "demo", "--cases", "12", "--epochs", "1", cwd=work)
    assert "[9/9 summary: about" in shown
    assert "Every step ran." in shown or "goals met" in shown
    assert (work / "demo" / "montage.png").exists()


def test_the_metadata_tell_an_index_what_this_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    description = metadata.get_payload()
    assert description.startswith("# slicemill")
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", description, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"\]\((?!https?:|mailto:|#)[^)]*\)|<img", prose) == [], "no target in the repository"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Zarr" in metadata["Keywords"].split(",")
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_the_source_distribution_holds_the_tests_and_can_run_them(distributions, tmp_path):
    with tarfile.open(distributions[1]) as archive:
        members = archive.getmembers()
        assert not any(member.issym() or member.islnk() for member in members)
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert set(source_files()) <= names
    tests = {path.relative_to(HERE).as_posix() for path in (HERE / "tests").rglob("*.*") if path.suffix != ".pyc"}
    installed = {name for name in tests if "/node_modules/" in name}
    assert tests - installed - names == set()
    assert not any("node_modules" in name for name in names)
    assert {"Makefile", "constraints.txt", ".ci/run", "bench/results/demo.json", "bench/gpu/one.sh"} <= names
    assert {"CITATION.cff", "Dockerfile", ".dockerignore", "recipe/recipe.yaml", "setup.py", "README.md"} <= names
    shown = run(sys.executable, "-c", "import slicemill; print(slicemill.__file__)", cwd=tmp_path, path=root)
    assert Path(shown.strip()).is_relative_to(root)
    telling = ("tests/common/test_errors.py", "tests/common/test_files.py", "tests/common/test_html.py")
    pytest_words = ("-m", "pytest", *telling, "-q", "-p", "no:cacheprovider")
    assert " passed" in run(sys.executable, *pytest_words, cwd=root, path=root)

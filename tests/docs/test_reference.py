"""The reference lists every column and every key of the files that the commands write, and none that do not exist."""

import csv
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.web.marks import Marks
from tests.docs.pages import HERE
from tests.infer.networks import write_classifier
from tests.ingest.luna import CENTERS, HEADER, UID, make_collection, place, write_table

LABELS = ("liver", "tumor")
pytestmark = pytest.mark.slow
CASE = re.compile(r"volume-\d+")
TABLES = (HERE / "docs" / "reference" / "tables.md").read_text()
DOCUMENTS = (HERE / "docs" / "reference" / "json.md").read_text()
WITH_CASES_AS_KEYS = {"store/checksums.json"}
WITH_VERSIONS = {"environment.versions", "environment.caches"}
"""Objects whose keys are names of packages and caches."""


def section(page, title):
    """Return the names in backticks in the first cells of a section's table."""
    (text,) = re.findall(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def titles(page):
    return re.findall(r"^## (\S+)$", page, re.MULTILINE)


def run(*words, exit_code=0):
    done = CliRunner().invoke(commands(), list(map(str, words)))
    assert done.exit_code == exit_code, done.output


@pytest.fixture(scope="session")
def written(collection, trained, model, shared):
    """A folder with what every command writes."""

    def make(folder):
        folder.mkdir()
        shutil.copytree(collection, folder / "scans")
        (folder / "scans" / "broken.nii").write_text("garbage")
        shutil.copytree(trained, folder / "run")
        masks = folder / "masks"
        masks.mkdir()
        for mask in (folder / "scans").glob("segmentation-*"):
            shutil.copy(mask, masks / mask.name.replace("segmentation", "volume"))
        run("ingest", folder / "scans", folder / "store", exit_code=1)
        points = make_collection(folder / "luna")
        rows = [("1.2.3", 0, 0, 0, 0), (UID.format(1), *place(CENTERS[1][0]), 1)]
        candidates = write_table(folder / "candidates.csv", (*HEADER[:4], "class"), rows)
        run("ingest", folder / "luna", folder / "nodules", "--points", points, "--candidates", candidates)
        run("store", "export-slices", folder / "store", folder / "slices", "--format", "png")
        run("store", "export", folder / "store", folder / "dataset", "--format", "monai")
        run("infer", model, folder / "scans", "--out", folder / "segmented", "--strict", exit_code=1)
        words = ("--labels", "liver=1,tumor=2")
        classifier = write_classifier(folder / "classifier.onnx", malignancy=True)
        run("infer", model, collection, "--out", folder / "nodules", "--classifier", classifier)
        run("evaluate", masks, collection, "--out", folder / "scores", "--against", masks, *words)
        run("measure", masks, "--image", collection, "--out", folder / "lesions", *words)
        first = masks / "volume-0.nii"
        run("compare", first, first, "--out", folder / "change", *words)
        run("phantom", folder / "chests", "--lungs", "--cases", 1, "--size", 128)
        Marks(folder / "marks.csv").put("volume-0", "good")

    return shared("written", make)


def general(name):
    """Return a column with NAME in place of a label."""
    return re.sub(rf"(?<=_)({'|'.join(LABELS)})(?=$|_ml$)", "NAME", name) if not name.startswith("has_") else name


def columns(path):
    if path.suffix == ".parquet":
        return pq.read_schema(path).names
    with path.open() as file:
        return next(csv.reader(file))


@pytest.mark.parametrize("title", titles(TABLES))
def test_every_column_is_listed_and_exists(written, title):
    per_label = {name.replace("NAME", label): name for name in section(TABLES, title) for label in LABELS}
    there = columns(written / title)
    assert [column for column in there if column not in per_label] == []
    assert sorted(set(per_label.values()) - {per_label[column] for column in there}) == []


def keys(value, path=""):
    """Yield the path of each key: a.b for objects, a[].b for lists of objects."""
    if isinstance(value, dict):
        for key, child in value.items():
            name = "ID" if CASE.fullmatch(key) else key
            if (key in LABELS and not (path and set(value) <= {*LABELS, "background"})) or key not in LABELS:
                yield f"{path}{name}"
            if f"{path}{name}" not in WITH_VERSIONS:
                yield from keys(child, f"{path}{'NAME' if key in LABELS else name}.")
    elif isinstance(value, list):
        for child in value:
            if isinstance(child, dict):
                yield from keys(child, f"{path.removesuffix('.')}[].")


def read(folder, title):
    """Return the documents of a title: of all cases, and all lines."""
    for path in sorted(folder.glob(title.replace("ID", "volume-*"))):
        text = path.read_text()
        documents = map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else [json.loads(text)]
        for document in documents:
            yield document["attributes"]["slicemill"] if path.name == "zarr.json" else document


def words_of(name):
    """Return the parts of a key's path, and the path as a key with dots in it."""
    return {part.removesuffix("[]") for part in name.split(".")} | {name, name.removeprefix("lesions.")}


@pytest.mark.parametrize("title", titles(DOCUMENTS))
def test_every_key_is_listed(written, title):
    listed = {word for name in section(DOCUMENTS, title) for word in words_of(name)}
    rows = set()
    if title == "scores/evaluation.json":  # "the rows of evaluation.csv"
        rows = set(columns(written / "scores" / "evaluation.csv"))
    if title in ("scores/comparison.json", "lesions/summary.json", "lesions/ID.json"):
        tables = {"scores/comparison.json": "scores/comparison.csv", "lesions/summary.json": "lesions/cases.csv"}
        rows = set(columns(written / tables.get(title, "lesions/lesions.csv"))) | {"centroid_zyx", "centroid_lps_mm"}
    if title == "change/compare.json":  # "as in lesions/ID.json"
        listed |= {word for name in section(DOCUMENTS, "lesions/ID.json") for word in words_of(name)}
    documents = list(read(written, title))
    assert documents, title
    for document in documents:
        for path in keys(document):
            if (title in WITH_CASES_AS_KEYS and "." in path) or path.startswith(("stamp.", "options.")):
                continue  # a file name, a size, an option of a command
            key = path.split(".")[-1] if not path.endswith("0.5") else path.split(".", 1)[1]
            assert key in listed | rows | {"NAME", "ID", "begun"}, path


@pytest.mark.parametrize("title", titles(DOCUMENTS))
def test_every_listed_key_exists(written, title):
    optional = {"curve", "band", "left_out", "reason"}
    there = {word for document in read(written, title) for path in keys(document) for word in words_of(path)}
    there |= {"NAME", "regions.NAME"} | optional
    missing = {name for name in section(DOCUMENTS, title) if words_of(name) - {name} - there}
    absent = ("model.",)  # masks of the collection, without a report of infer
    if title == "segmented/ID.json":
        absent = ("lesions[].",)  # the small network finds none; they are the same record as in the store
    assert {name for name in missing if not name.startswith(absent)} == set()

"""The kinds of damaged inputs. `ATTEMPTS[kind](rng, folder)` makes one in an empty folder and has it read."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import onnx

from slicemill.common.errors import InputError
from slicemill.common.ledger import LEDGER
from slicemill.common.tables import read_table
from slicemill.ct.labels import LITS_LABELS
from slicemill.ct.phantom import write_collection, write_nifti
from slicemill.infer.network.description import read_description
from slicemill.ingest.convert import convert_case
from slicemill.ingest.discover import discover
from slicemill.ingest.outcomes import read_done, read_failures
from slicemill.ingest.pair_table import choose_labels, from_csv
from slicemill.ingest.params import Params
from slicemill.store.layout import FAILURES
from slicemill.store.tables import reindex
from slicemill.store.writer import prepare_store
from slicemill.train.config import Config, read_config, to_toml
from tests.fuzz import dicom, scans, volumes
from tests.fuzz.damage import NUMBERS, TEXTS, damage_bytes, damage_json, damage_text
from tests.infer.commands import app
from tests.infer.networks import CARD, SIDE, write_model, write_threshold

STATUSES = (0, 1, 2)
TABLES = {
    "pairs": "image,mask,case_id,patient_id\na.nii.gz,a_seg.nii.gz,a,p1\nb.nii.gz,b_seg.nii.gz,b,p2\n",
    "labels": "name,value,file\nkidney,1,kidney_left\nkidney,1,kidney_right\nliver,2,liver\n",
    "points": "seriesuid,coordX,coordY,coordZ,probability\nscan-1,-100.5,60.25,-300,0.9\nscan-2,1,2,3,0.1\n",
}
DATASET = {
    "name": "x", "labels": {"background": 0, "liver": [1, 2], "tumor": 2, "ignore": 3}, "channel_names": {"0": "CT"},
    "regions_class_order": [1, 2], "numTraining": 2, "file_ending": ".nii.gz",
}  # fmt: skip


def run(*words: object) -> str:
    """Run a command in this process; it succeeds, or says in one line why not."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(app(), [*map(str, words)], catch_exceptions=False)
    assert result.exit_code in STATUSES, (words[0], result.exit_code)
    assert "Traceback" not in result.output, words
    assert result.exit_code == 0 or result.output.strip(), "a failure without a word"
    return result.output


def reads(read: Callable[[], object]) -> None:
    """Read something, or get one clear error."""
    try:
        read()
    except InputError as error:
        message = str(error)
        assert message, "an error without a word"
        message.encode()


@functools.cache
def sample_folder() -> Path:
    """Return the folder of the sound inputs: ``collection``, ``store``, two models and the results of one."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    list(write_collection(folder / "collection", cases=2, size=32, seed=0))
    store = prepare_store(folder / "store")
    for case in discover(folder / "collection").cases:
        convert_case(case, Params(labels=LITS_LABELS), store)
    reindex(store)
    volume = np.full((3, SIDE, SIDE), -500, np.int16)
    volume[:, 4:9, 4:9] = 60
    write_nifti(folder / "scans" / "a.nii", volume, (5.0, 1.0, 1.0))
    write_model(folder / "model.onnx", {"tumor": 1})
    write_threshold(folder / "foreign.onnx")
    return folder


def attempt_store(rng: Random, folder: Path) -> None:
    """Damage a file of a store and run the commands of stores on it."""
    store = Path(shutil.copytree(sample_folder() / "store", folder / "store"))
    for _ in range(rng.randint(1, 2)):
        path = rng.choice(sorted(path for path in store.rglob("*") if path.is_file()))
        content = path.read_bytes()
        path.write_bytes(
            damage_json(rng, content.decode()) if path.suffix == ".json" and content else damage_bytes(rng, content)
        )
    case = rng.choice(["volume-0", "volume-1"])
    commands = (
        ("store", "info", store),
        ("store", "manifest", store),
        ("store", "verify", store, "--source", sample_folder() / "collection"),
        ("store", "reindex", store),
        ("store", "preview", store, "--out", folder / "x.png"),
        ("store", "export", store, case, folder / "x.nii"),
        ("measure", store, "--out", folder / "measured"),
        ("evaluate", store, store),
        ("split", store, folder / "split", "--folds", "2"),
    )
    for words in rng.sample(commands, 3):
        run(*words)


def attempt_ledger(rng: Random, folder: Path) -> None:
    """Damage the ledgers of ingest and of inference, and read them."""
    lines = [
        {
            "case_id": "volume-0",
            "stamp": None,
            "reason": "ends early",
            "status": "done",
            "slices": 4,
            "source": "a.nii",
        },
        {"name": "a.nii", "status": "done", "source": "a.nii", "model": "0" * 64, "stamp": [1, 2.5], "seconds": 0.1},
    ]
    for name, read in ((LEDGER, read_done), (FAILURES, read_failures)):
        (folder / name).write_bytes(
            b"\n".join(damage_json(rng, json.dumps(rng.choice(lines))) for _ in range(rng.randint(1, 4)))
        )
        reads(functools.partial(read, folder))
    results = folder / "results"
    run("infer", sample_folder() / "model.onnx", sample_folder() / "scans", "--out", results)
    for path in sorted(results.glob("*.json*")):
        content = path.read_text()
        damaged = [damage_json(rng, line) for line in content.splitlines()] if path.suffix == ".jsonl" else None
        path.write_bytes(damage_json(rng, content) if damaged is None else b"\n".join(damaged))
    run("infer", sample_folder() / "model.onnx", sample_folder() / "scans", "--out", results)
    run("measure", results, "--out", folder / "measured")


def attempt_model(rng: Random, folder: Path) -> None:
    """Damage a model's bytes or metadata, and use it."""
    name = rng.choice(["model", "foreign"])
    path = folder / "x.onnx"
    content = (sample_folder() / f"{name}.onnx").read_bytes()
    if name == "model" and rng.random() < 0.7:
        model = onnx.load_model_from_string(content)
        entry = rng.choice(model.metadata_props)
        entry.value = damage_json(rng, entry.value).decode(errors="replace")
        path.write_bytes(model.SerializeToString())
    else:
        path.write_bytes(damage_bytes(rng, content) if rng.random() < 0.6 else content)
        path.with_suffix(".toml").write_bytes(damage_text(rng, CARD) if rng.random() < 0.6 else CARD.encode())
    run("infer", path, sample_folder() / "scans", "--out", folder / "results")


def attempt_table(rng: Random, folder: Path) -> None:
    """Damage a table of pairs, labels or points."""
    name = rng.choice(list(TABLES))
    path = folder / f"{name}.csv"
    path.write_bytes(damage_text(rng, TABLES[name].replace(",", rng.choice(",,,;\t"))))
    if name == "pairs":
        reads(lambda: from_csv(path))
    elif name == "labels":
        reads(lambda: choose_labels(str(path), None, None))
    else:
        required = tuple(TABLES[name].split("\n")[0].split(","))
        reads(lambda: [row.number("coordX") for row in read_table(path, required=required)])


def attempt_toml(rng: Random, folder: Path) -> None:
    """Damage settings of a training, and the description of a network."""
    path = folder / "x.toml"
    path.write_bytes(damage_text(rng, to_toml(Config())))
    reads(lambda: read_config(path))
    path.write_bytes(damage_text(rng, CARD))
    reads(lambda: read_description(path))


def attempt_collection(rng: Random, folder: Path) -> None:
    """Damage dataset.json, and names of files."""
    names = ["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"]
    for name in names:
        parent, _, stem = name.partition("/")
        if rng.random() < 0.3:
            stem = damage_text(rng, stem).replace(b"/", b"").replace(b"\0", b"")[:200].decode(errors="replace") or "x"
        path = folder / "collection" / parent / stem
        if stem not in (".", ".."):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    document = folder / "collection" / "dataset.json"
    document.parent.mkdir(exist_ok=True)
    document.write_bytes(damage_json(rng, json.dumps(DATASET)))
    labels = rng.choice([None, "liver=1", f"{rng.choice(TEXTS)}={rng.choice(NUMBERS)}"])
    options = [] if labels is None else ["--labels", labels.encode(errors="replace").decode()]
    run("ingest", folder / "collection", folder / "store", "--dry-run", *options)


ATTEMPTS: dict[str, Callable[[Random, Path], None]] = {
    "scan": scans.attempt,
    "volume": volumes.attempt,
    "dicom": dicom.attempt,
    "store": attempt_store,
    "ledger": attempt_ledger,
    "model": attempt_model,
    "table": attempt_table,
    "toml": attempt_toml,
    "collection": attempt_collection,
}

"""Start time of typed documents: msgspec against pydantic.

Each contender is a new Python process that imports the library, builds a decoder for `slicemill.ct.lesions.Lesion` and
decodes one lesion. A process that does neither is timed too, and its time is subtracted. pydantic is skipped if it
is not installed. Command: `slicemill bench documents`.
"""

import importlib.util
import inspect
import json
import subprocess
import sys
from statistics import median

from slicemill.bench.harness.clock import Work, show_progress, time_rounds
from slicemill.bench.harness.headline import Record
from slicemill.bench.schema.base import origin
from slicemill.bench.schema.data import DocumentsRecord
from slicemill.ct.lesions import Lesion

LESION = Lesion(
    id=1,
    voxels=1200,
    volume_ml=2.4,
    centroid_lps_mm=(10.0, 20.0, 30.0),
    bbox_zyx=(1, 2, 3, 9, 8, 7),
    key_z=4,
    max_axial_diameter_mm=21.5,
)
CLASS = f"from dataclasses import dataclass\nfrom typing import Any\n{inspect.getsource(Lesion)}"
DECODERS = {
    "neither": "",
    "msgspec": "import msgspec\nmsgspec.json.Decoder(Lesion).decode(document)",
    "pydantic": "from pydantic import TypeAdapter\nTypeAdapter(Lesion).validate_json(document)",
}


def run(*, rounds: int) -> Record:
    """Time the installed libraries and return the record."""
    document = json.dumps(LESION.as_json())
    contenders = {
        name: start(f"{CLASS}\ndocument = {document!r}\n{decoder}")
        for name, decoder in DECODERS.items()
        if name == "neither" or importlib.util.find_spec(name)
    }
    with show_progress("documents", len(contenders), rounds) as log:
        seconds = {name: timing.seconds for name, timing in time_rounds(contenders, rounds=rounds, log=log).items()}
    base = seconds.pop("neither")
    added = {name: [one - zero for one, zero in zip(times, base, strict=True)] for name, times in seconds.items()}
    ratios = [slow / fast for slow, fast in zip(added.get("pydantic", ()), added["msgspec"], strict=False)]
    return DocumentsRecord(
        **origin(),
        rounds=rounds,
        added_ms={name: round(1000 * median(times), 1) for name, times in added.items()},
        ratio=round(median(ratios), 2) if ratios else None,
    ).as_json()


def start(code: str) -> Work:
    """Return a contender that runs code in a new Python process."""
    return lambda: subprocess.run([sys.executable, "-I", "-c", code], check=True)  # noqa: S603 (code of this module)

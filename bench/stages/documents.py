"""Start time of typed documents: msgspec against pydantic.

    python -m slicemill.bench.stages.documents

Each contender is a new Python process that imports the library, builds a decoder for `slicemill.ct.lesions.Lesion` and
decodes one lesion. A process that does neither is timed too, and its time is subtracted. pydantic is skipped if it
is not installed.
"""

import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from slicemill.bench.harness.clock import time_rounds
from slicemill.common.terminal import print_line
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
RECORD = f"from dataclasses import dataclass\nfrom typing import Any\n{inspect.getsource(Lesion)}"
DECODERS = {
    "neither": "",
    "msgspec": "import msgspec\nmsgspec.json.Decoder(Lesion).decode(document)",
    "pydantic": "from pydantic import TypeAdapter\nTypeAdapter(Lesion).validate_json(document)",
}


def run(rounds: int) -> dict[str, Any]:
    """Time the installed libraries; return milliseconds added to the start of Python, and pydantic's over msgspec's."""
    document = json.dumps(LESION.as_json())
    contenders = {
        name: start(f"{RECORD}\ndocument = {document!r}\n{decoder}")
        for name, decoder in DECODERS.items()
        if name == "neither" or importlib.util.find_spec(name)
    }
    seconds = {name: timing.seconds for name, timing in time_rounds(contenders, rounds=rounds).items()}
    added = {
        name: [one - base for one, base in zip(times, seconds["neither"], strict=True)]
        for name, times in seconds.items()
        if name != "neither"
    }
    ratios = [slow / fast for slow, fast in zip(added.get("pydantic", ()), added["msgspec"], strict=False)]
    return {
        "rounds": rounds,
        "added_ms": {name: round(1000 * median(times), 1) for name, times in added.items()},
        "pydantic over msgspec": round(median(ratios), 2) if ratios else None,
    }


def start(code: str) -> Callable[[], None]:
    """Return a contender that runs code in a new Python process."""

    def run_python() -> None:
        subprocess.run([sys.executable, "-I", "-c", code], check=True)  # noqa: S603 (code of this module)

    return run_python


if __name__ == "__main__":
    record = run(rounds=15)
    for name, milliseconds in record["added_ms"].items():
        print_line(f"{name}: {milliseconds} ms")
    print_line(f"pydantic over msgspec: {record['pydantic over msgspec'] or 'pydantic is not installed'}")

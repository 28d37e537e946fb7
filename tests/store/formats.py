"""Stores of format 1, as slicemill 0.1 wrote them."""

import json
import shutil
from pathlib import Path

from slicemill.store.tables import reindex


def to_format_1(store: Path) -> Path:
    """Turn a store into one of format 1: the segmentation in ``label``, no group ``labels``, no attribute ``ome``."""
    for document in (store / "scans.zarr").glob("**/zarr.json"):
        content = json.loads(document.read_text())
        attributes = content["attributes"]
        if attributes.get("slicemill"):
            attributes["slicemill"]["format"] = 1
            attributes.pop("ome", None)
            at_root = document.parent.name == "scans.zarr"
            document.write_text(
                json.dumps(content, indent=2) + "\n" if at_root else json.dumps(content, ensure_ascii=False)
            )
    for labels in list((store / "scans.zarr").glob("*/labels")):
        (labels / "segmentation/0").rename(labels.with_name("label"))
        shutil.rmtree(labels)
    reindex(store)
    return store

"""A small store of lungs with nodules and vessels, with points, candidates and malignancy, as LUNA16 has them."""

import numpy as np

from slicemill.ingest.convert import convert_case
from slicemill.ingest.request import IngestRequest
from slicemill.store.writer import prepare_store
from tests.ingest.luna import HEADER, ORIGIN, SPACING, UID, write, write_table

SHAPE = (40, 60, 64)
CASES = 6


def place(zyx):
    return tuple(float(o + s * v) for o, s, v in zip(ORIGIN, SPACING, zyx[::-1], strict=True))


def make_lungs(root, cases=CASES):
    """Scans with two nodules and two rods each: balls of 5 to 11 mm, rods that run along z with the same section."""
    rng = np.random.default_rng(5)
    nodules, candidates = [], []
    z, y, x = np.indices(SHAPE)
    for case in range(1, cases + 1):
        voxels = rng.normal(-850, 15, SHAPE)
        for number, (cy, cx) in enumerate([(15, 15), (15, 48), (45, 15), (45, 48)]):
            diameter = float(rng.uniform(5, 11))
            center = (20, cy, cx)
            across = ((y - cy) * SPACING[1]) ** 2 + ((x - cx) * SPACING[0]) ** 2
            along = ((z - 20) * SPACING[2]) ** 2 if number < 2 else 0
            voxels[across + along <= (diameter / 2) ** 2] = 40
            if number < 2:
                nodules.append((UID.format(case), *place(center), diameter, number))
                candidates.append((UID.format(case), *place(center), 1))
            else:
                candidates += [(UID.format(case), *place((cz, cy, cx)), 0) for cz in (14, 20, 26)]
        write(root / f"{UID.format(case)}.mhd", voxels.astype(np.int16))
    write_table(root / "annotations.csv", (*HEADER, "malignancy"), nodules)
    write_table(root / "candidates.csv", (*HEADER[:4], "class"), candidates)
    return root


def make_crop_store(root, cases=CASES):
    """Return the path of a store of these scans."""
    folder = make_lungs(root / "lungs", cases)
    store = prepare_store(root / "store")
    request = IngestRequest(
        source=folder,
        store=store,
        points=folder / "annotations.csv",
        candidates=folder / "candidates.csv",
        workers=1,
    )
    collection = request.collection()
    for case in collection.cases:
        convert_case(case, request.params(collection), store)
    return store

"""Chosen slices of a stored case, with outlines."""

from slicemill.ct.pictures import (
    Tile,
    draw_labels,
    evenly_spaced,
    gray,
    label_colors,
)
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Case


def case_tiles(case: Case, count: int) -> list[Tile]:
    """Return `count` slices of a case: spread over its labelled part, the one with most tumor among them."""
    tiles = []
    chosen = chosen_slices(case.info, count)
    for z in [*chosen, *chosen[-1:] * (count - len(chosen))]:
        picture = gray(case.image[z])
        if case.label is not None and case.info.labels is not None:
            picture = draw_labels(picture, case.label[z], label_colors(case.info.labels))
        tiles.append(Tile(picture=picture, caption=f"{case.info.case_id}  z={z}"))
    return tiles


def chosen_slices(info: CaseInfo, count: int) -> list[int]:
    """Return the slices worth a look: spread over those with a label (over all where there is none)."""
    voxels = info.slice_stats.voxels
    filled = [z for z in range(info.shape[0]) if any(counts[z] for counts in voxels.values())]
    chosen = evenly_spaced(filled or range(info.shape[0]), count)
    tumor = voxels.get(info.labels.tumor or "", []) if info.labels else []
    if any(tumor):
        most = max(range(len(tumor)), key=lambda z: tumor[z])
        if most not in chosen:
            nearest = min(range(len(chosen)), key=lambda index: abs(chosen[index] - most))
            chosen[nearest] = most
    return chosen

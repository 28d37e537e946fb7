"""Pictures of a few slices of a stored case, with outlines of the labels."""

from slicemill.ct.pictures import Panel, draw_labels, label_colors, pick_evenly, render_gray
from slicemill.store.case import CaseInfo
from slicemill.store.reader import Case


def draw_tiles(case: Case, count: int) -> list[Panel]:
    """Draw `count` slices of a case, chosen by `choose_slices`."""
    tiles = []
    chosen = choose_slices(case.info, count)
    for z in [*chosen, *chosen[-1:] * (count - len(chosen))]:
        picture = render_gray(case.image[z])
        if case.label is not None and case.info.labels is not None:
            picture = draw_labels(picture, case.label[z], label_colors(case.info.labels))
        tiles.append(Panel(picture=picture, caption=f"{case.info.case_id}  z={z}"))
    return tiles


def choose_slices(info: CaseInfo, count: int) -> list[int]:
    """Choose at most `count` slices: evenly spaced labeled slices (or all), and the slice with most tumor."""
    stats = info.slice_stats
    chosen = pick_evenly(stats.labeled() or range(info.shape[0]), count)
    tumor = stats.voxels.get(info.labels.tumor or "", []) if info.labels else []
    if any(tumor):
        most = max(range(len(tumor)), key=lambda z: tumor[z])
        if most not in chosen:
            nearest = min(range(len(chosen)), key=lambda index: abs(chosen[index] - most))
            chosen[nearest] = most
    return chosen

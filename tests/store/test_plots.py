"""Plots hold for any collection: none or all with masks, one case or many."""

import base64
import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from slicemill.common.errors import ConfigError
from slicemill.store import plots
from slicemill.store.cli import store as cli
from slicemill.store.plots import (
    PlotData,
    choose_panels,
    collect_data,
    draw_plots,
    make_title,
    render_page,
    write_plots,
)
from slicemill.store.reader import open_store
from slicemill.store.tables import make_manifest_row
from slicemill.store.writer import prepare_store
from tests.store.rows import manifest


def opened(content):
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture)


def facts_of(count, rng, *, masks=True, tumors=True):
    """PlotData of invented cases, as wide in range as LiTS."""
    facts = PlotData(rows=[], slice_hu=[], diameters_mm=[])
    for number in range(count):
        lesions = int(rng.geometric(0.2)) if masks and tumors and number % 10 != 9 else 0
        row = manifest(
            case_id=f"volume-{number}",
            patient_id=str(number),
            mask_path="x" if masks else None,
            nz=int(rng.integers(70, 990)),
            spacing_z_mm=float(rng.choice([0.7, 1.0, 5.0])),
            spacing_x_mm=float(rng.uniform(0.5, 1.0)),
        )
        if masks:
            volume = float(10 ** rng.normal(1.3, 0.9)) if lesions else 0.0
            row = replace(
                row,
                has_tumor=lesions > 0,
                n_lesions=lesions,
                tumor_volume_ml=volume,
                tumor_percent_organ=volume / 16,
                tumor_percent_scan=volume / 160,
            )
        facts.rows.append(row)
        facts.slice_hu.extend((-1024, int(rng.integers(300, 3000))) for _ in range(row.nz))
        facts.diameters_mm.extend(float(value) for value in 10 ** rng.normal(1.2, 0.4, lesions))
    return facts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "masks", "tumors", "panels"),
    [(131, True, True, 8), (30, False, False, 4), (5, True, False, 4), (1, True, True, 8), (1, False, False, 4)],
)
def test_any_collection_draws_the_panels_it_has_something_for(count, masks, tumors, panels, rng):
    facts = facts_of(count, rng, masks=masks, tumors=tumors)
    assert len(choose_panels(facts)) == panels
    picture = opened(draw_plots(facts, "any"))
    assert picture.shape[1] > 1500
    assert picture.shape[0] > (700 if panels == 8 else 400)
    assert len(np.unique(picture[..., :3].astype(int) @ (1 << 16, 1 << 8, 1))) > 20


@pytest.mark.parametrize(
    "panel", ["draw_volumes", "draw_burden", "draw_diameters", "draw_lesion_counts", "draw_slices"]
)
def test_a_histogram_counts_every_value_once(panel, rng):
    from matplotlib.figure import Figure

    facts = facts_of(40, rng)
    axes = Figure().add_subplot()
    getattr(plots, panel)(axes, facts)
    expected = {"draw_diameters": len(facts.diameters_mm), "draw_slices": 40, "draw_lesion_counts": 40}
    assert sum(bar.get_height() for bar in axes.patches) == expected.get(panel, len(facts.tumors))
    assert axes.get_xlabel()
    assert axes.get_ylabel()


def test_a_lesion_of_one_voxel_has_no_length_and_is_counted_all_the_same(rng):
    from matplotlib.figure import Figure

    facts = facts_of(3, rng)
    facts.diameters_mm[:] = [0.0, 0.0, 12.0]
    axes = Figure().add_subplot()
    plots.draw_diameters(axes, facts)
    assert sum(bar.get_height() for bar in axes.patches) == 3


def test_a_slice_that_is_all_padding_has_no_hu_to_draw(stored):
    facts = collect_data(case.info for case in open_store(stored).values())
    assert len(facts.slice_hu) == sum(row.nz for row in facts.rows)
    drawn = facts_of(1, np.random.default_rng(0))
    drawn.slice_hu.clear()
    assert draw_plots(drawn, "padding")


def test_the_headline_counts_cases_patients_slices_and_tumors(rng):
    facts = facts_of(10, rng)
    slices = sum(row.nz for row in facts.rows)
    assert make_title(facts, "lits") == f"lits: 10 cases of 10 patients, {slices:,} slices; tumor in 9 of 10"
    assert make_title(facts_of(2, rng, masks=False), "x").endswith("no masks")


@pytest.mark.slow
def test_a_page_is_self_contained_and_escapes_its_values(rng):
    facts = facts_of(3, rng)
    facts.rows[0] = replace(facts.rows[0], case_id='<script>alert("x")</script>')
    content = render_page(facts, draw_plots(facts, "a"), "<b>&").decode()
    assert content.count("<script") == 1  # the page's own, which sorts the table
    assert "&lt;script&gt;alert(&#34;x&#34;)" in content
    assert "&lt;b&gt;&amp;: 3 cases" in content
    assert not re.search(r"(src|href)=\"(?!data:)", content)
    (picture,) = re.findall(r"data:image/png;base64,([^\"]+)", content)
    assert opened(base64.b64decode(picture)).size
    assert content.count("<tr>") == 4


def test_a_page_of_a_large_collection_counts_the_cases_that_it_leaves_out(rng, monkeypatch):
    monkeypatch.setattr(plots, "TABLE_ROWS", 2)
    facts = facts_of(5, rng)
    content = render_page(facts, b"", "a").decode()
    assert content.count("<tr>") == 3
    assert "3 more cases are in manifest.csv" in content


def test_a_name_with_dollar_signs_is_no_formula(rng):
    assert draw_plots(facts_of(1, rng), r"$\broken{$ store_1")


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_the_command_writes_a_picture_or_a_page(suffix, stored, tmp_path):
    out = tmp_path / f"plots{suffix}"
    done = CliRunner().invoke(cli, ["plots", str(stored), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 20_000
    if suffix == ".html":
        row = make_manifest_row(open_store(stored)["volume-4"].info)
        assert f'<td class="number" data-value="{row.hu_max}">{row.hu_max:,}</td>' in out.read_text()


def test_another_suffix_and_an_empty_store_are_refused(stored, tmp_path):
    with pytest.raises(ConfigError, match=r"written as \.png or \.html"):
        write_plots(open_store(stored), tmp_path / "plots.pdf")
    with pytest.raises(ConfigError, match="has no cases to plot"):
        write_plots(open_store(prepare_store(tmp_path / "empty")), tmp_path / "plots.png")


def test_without_matplotlib_the_error_names_the_extra(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'slicemill\[ingest\]'"):
        draw_plots(facts_of(1, rng), "any")

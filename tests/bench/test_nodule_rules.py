"""Rules of threshold and shape on synthetic chests: what they find, and that none of 200 solves the chests."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.bench.cli import bench
from slicemill.bench.records.readme import KINDS, format_record
from slicemill.bench.schema.base import read_record
from slicemill.bench.schema.nodules import NoduleRulesRecord
from slicemill.bench.studies import nodule_rules
from slicemill.bench.studies.nodule_rules import LIMIT, all_settings, find_candidates, find_components, run
from slicemill.ct.chest.phantom import ChestPhantom

RECORD = Path(__file__).parents[2] / "bench" / "results" / "nodule-rules.json"


@pytest.fixture
def chest():
    """A lung with a ball of 10 mm at x 20, y 30, z 24 mm, a rod of 3 mm, and the trachea in it."""
    z, y, x = np.mgrid[:32, :60, :60]
    image = np.full(z.shape, -880, dtype=np.int16)
    image[(2.0 * z - 24) ** 2 + (y - 30) ** 2 + (x - 20) ** 2 <= 25] = 30
    image[(y - 45) ** 2 + (x - 45) ** 2 <= 2.25] = 30
    lungs = np.full(z.shape, 3, dtype=np.uint8)
    lungs[:, :4] = 0
    lungs[:, 50:] = 5
    image[:, 55:] = 40
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = 100, -50, 7
    return ChestPhantom(image=image, lungs=lungs, nodules=np.zeros_like(lungs), affine=affine)


def test_there_are_200_different_settings():
    assert len({setting.name for setting in all_settings()}) == 200


def test_a_ball_is_round_and_a_rod_is_not(chest):
    found = find_components(chest, -400, 0.0)
    ball, rod = np.argsort(found.centers[:, 0])
    assert found.centers[ball] == pytest.approx([120, -20, 31])
    assert found.diameters[ball] == pytest.approx(10, abs=0.5)
    assert found.roundness[ball] > 0.85
    assert found.roundness[rod] < 0.2
    assert len(found.centers) == 2, "the wall of the trachea is not lung"


def test_an_opening_removes_what_is_thinner_than_its_ball(chest):
    assert len(find_components(chest, -400, 2.9).centers) == 1
    assert len(find_components(chest, 3000, 1.4).centers) == 0


def test_a_range_and_a_rank_choose_and_order_candidates(chest):
    found = dict(find_candidates(chest, all_settings()))
    assert set(found) == set(all_settings())
    for setting, candidates in found.items():
        assert candidates.shape[1] == 4
        if setting.range_mm == (7.0, 35.0) and setting.ball_mm == 0:
            best = candidates[candidates[:, 3].argmax()]
            assert best[:3] == pytest.approx([120, -20, 31]), setting.name


def test_a_rule_that_finds_everything_has_a_cpm_of_1_and_fails_the_command(chest, monkeypatch, tmp_path):
    monkeypatch.setattr(nodule_rules, "make_chest", lambda _spec, _plan: chest)
    rows = [type("Row", (), {"coordX": 120, "coordY": -20, "coordZ": 31, "diameter_mm": 10})]
    monkeypatch.setattr(nodule_rules, "annotate", lambda _spec, _plan: rows)
    monkeypatch.setattr(nodule_rules, "make_plan", lambda _spec: None)
    path = tmp_path / "record.json"
    done = CliRunner().invoke(bench, ["nodule-rules", "--cases", "2", "--json", str(path)])
    assert done.exit_code == 1
    assert "a rule solves the synthetic chests, with a CPM of 1.000" in " ".join(done.output.split())
    record = read_record(KINDS["nodule-rules"], json.loads(path.read_text()))
    assert (record.cases, record.findings, len(record.settings)) == (2, 2, 200)
    assert "| CPM |" in format_record(json.loads(path.read_text()))


def test_no_rule_of_the_committed_record_solves_the_chests():
    record = read_record(NoduleRulesRecord, json.loads(RECORD.read_text()))
    assert {score.rule for score in record.settings} == {setting.name for setting in all_settings()}
    assert record.findings >= 20
    assert max(score.cpm for score in record.settings) < LIMIT


@pytest.mark.slow
def test_no_rule_solves_the_chests():
    """On fewer and coarser chests than the record, of a seed with many nodules; the best rule is chosen on them."""
    record = run(4, 2, 128)
    assert record.findings > 10
    assert record.settings[0].cpm < LIMIT, record.settings[0].rule

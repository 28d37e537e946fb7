"""Splits and folds: by patient, with even shares of tumor, and no copy of a scan on two sides."""

import gzip
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from slicemill.cli import commands
from slicemill.common.errors import ConfigError, StoreError
from slicemill.ct.labels import LITS_LABELS
from slicemill.ingest.discover import discover
from slicemill.ingest.params import Params
from slicemill.ingest.pipeline import IngestOptions, ingest
from slicemill.store.reader import open_store
from slicemill.store.split import Split, read_split, write_split
from slicemill.store.tables import read_table
from slicemill.train.split import make_folds, make_split, make_subset_folds


def row(case_id, patient=None, tumor=False, sha=None, mask="m"):
    return {
        "case_id": case_id,
        "patient_id": patient or case_id,
        "has_tumor": tumor,
        "tumor_volume_ml": float(tumor),
        "source_sha256": sha or case_id,
        "mask_path": mask,
    }


class TestFolds:
    def rows(self):
        return [
            {**row(f"c{i}", patient=f"p{i // 2}", sha=f"s{i}"), "tumor_volume_ml": None if i % 7 == 0 else float(i * i)}
            for i in range(40)
        ]

    def test_every_patient_is_tested_once_and_none_is_on_two_sides(self):
        rows = self.rows()
        patient = {r["case_id"]: r["patient_id"] for r in rows}
        for seed in range(20):
            splits = make_folds(rows, folds=4, validation=0.2, seed=seed)
            tested = [case_id for split in splits for case_id in split.test]
            assert sorted(tested) == sorted(patient)
            for split in splits:
                sides = [{patient[case_id] for case_id in part} for part in (split.train, split.validation, split.test)]
                assert all(sides)
                assert sum(map(len, sides)) == len(set.union(*sides))
                assert len(sides[1]) == 4

    def test_the_same_voxels_in_another_file_are_on_one_side(self, collection, tmp_path):
        """3D-IRCADb lies in LiTS: the same scans under other names, compressed otherwise."""
        folder = tmp_path / "scans"
        shutil.copytree(collection, folder)
        for kind in ("volume", "segmentation"):
            (folder / f"{kind}-77.nii.gz").write_bytes(gzip.compress((collection / f"{kind}-0.nii").read_bytes(), 3))
        report = ingest(discover(folder), tmp_path / "store", Params(labels=LITS_LABELS), IngestOptions(workers=1))
        assert report.count("done") == 7
        rows = read_table(tmp_path / "store", "manifest")
        hashes = {r["case_id"]: (r["source_sha256"], r["fingerprint"]) for r in rows}
        assert hashes["volume-0"][0] != hashes["volume-77"][0]
        assert hashes["volume-0"][1] == hashes["volume-77"][1]
        assert len({fingerprint for _, fingerprint in hashes.values()}) == 6
        for seed in range(10):
            for split in [
                *make_folds(rows, folds=3, validation=0.2, seed=seed),
                make_split(rows, validation=0.2, test=0.3, seed=seed),
            ]:
                for part in (split.train, split.validation, split.test):
                    assert ("volume-0" in part) == ("volume-77" in part)

    def test_burdens_are_dealt_out_evenly(self):
        rows = self.rows()
        burden = {r["case_id"]: r["tumor_volume_ml"] or 0.0 for r in rows}
        for seed in range(20):
            means = [
                np.mean([burden[case_id] for case_id in split.test])
                for split in make_folds(rows, folds=4, validation=0.2, seed=seed)
            ]
            assert max(means) < 2.2 * min(means)

    def test_the_same_seed_gives_the_same_folds(self):
        assert make_folds(self.rows(), folds=5, validation=0.1, seed=3) == make_folds(
            self.rows(), folds=5, validation=0.1, seed=3
        )
        assert make_folds(self.rows(), folds=5, validation=0.1, seed=3) != make_folds(
            self.rows(), folds=5, validation=0.1, seed=4
        )

    def test_lunas_subsets_are_folds_and_no_patient_of_a_fold_is_trained_on(self):
        rows = [{**row(f"c{n}", f"p{n // 2 if n < 4 else n}", n % 2), "image_path": f"luna/subset{n % 5}/c{n}.mhd"}
                for n in range(20)]  # fmt: skip
        splits = make_subset_folds(rows, validation=0.2)
        assert list(splits) == [f"subset{n}" for n in range(5)]
        assert sorted(case for parts in splits.values() for case in parts.test) == sorted(r["case_id"] for r in rows)
        first = splits["subset0"]
        assert set(first.test) == {"c0", "c5", "c10", "c15"}
        assert "c1" not in {*first.train, *first.validation}  # the other scan of c0's patient
        assert len(first.train) + len(first.validation) == 15
        assert first.validation
        rows[3]["image_path"] = "luna/other/c3.mhd"
        with pytest.raises(StoreError, match="case c3 lies in no folder subset0"):
            make_subset_folds(rows, validation=0.2)
        with pytest.raises(StoreError, match="at least 2 folders; all are in subset0"):
            make_subset_folds(rows[:1], validation=0.2)

    def test_too_few_patients_are_an_error(self):
        with pytest.raises(StoreError, match="5 folds need at least 5 patients"):
            make_folds(self.rows()[:6], folds=5, validation=0.1, seed=0)

    def test_the_command_writes_files_that_training_takes(self, stored, tmp_path):
        done = CliRunner().invoke(commands(), ["split", str(stored), str(tmp_path), "--folds", "3"])
        assert done.exit_code == 0, done.output
        assert done.stdout.count("fold-") == 3
        known = open_store(stored).case_ids
        tested = [case_id for fold in range(3) for case_id in read_split(tmp_path / f"fold-{fold}.json", known).test]
        assert sorted(tested) == sorted(known)


class TestSplit:
    def test_no_patient_and_no_copy_of_a_scan_is_on_two_sides(self):
        rows = [
            row(
                f"c{i}",
                patient=f"p{i // 2}",
                sha=f"s{max(i, 2 * (i // 3))}" if i % 5 else f"s{i - i % 2}",
                tumor=i % 3 == 0,
            )
            for i in range(40)
        ]
        rows += [row("copy-a", patient="pa", sha="s3"), row("copy-b", patient="pa", sha="s21")]
        for seed in range(20):
            split = make_split(rows, validation=0.2, test=0.3, seed=seed)
            sides = [set(split.train), set(split.validation), set(split.test)]
            assert sum(map(len, sides)) == 42 == len(set.union(*sides))
            for name in ("patient_id", "source_sha256"):
                of_side = [{r[name] for r in rows if r["case_id"] in side} for side in sides]
                assert sum(map(len, of_side)) == len(set.union(*of_side)), name

    def test_a_part_that_would_be_empty_is_given_a_whole_patient(self):
        rows = [row(f"c{i}", patient=f"p{i // 2}") for i in range(6)]
        for seed in range(10):
            split = make_split(rows, validation=0.05, test=0.05, seed=seed)
            patients = [
                {int(case_id[1:]) // 2 for case_id in side} for side in (split.train, split.validation, split.test)
            ]
            assert patients[0]
            assert patients[1]
            assert sum(map(len, patients)) == 3

    def test_tumor_and_no_tumor_are_shared_out_alike(self):
        rows = [row(f"c{i}", tumor=i < 20) for i in range(40)]
        split = make_split(rows, validation=0.25, test=0.25, seed=0)
        for side in (split.validation, split.test):
            assert len(side) == 10
            assert sum(int(case_id[1:]) < 20 for case_id in side) == 5

    def test_burdens_are_shared_out_alike(self):
        rows = [{**row(f"c{i}", tumor=i >= 10), "tumor_volume_ml": 1.5**i if i >= 10 else None} for i in range(50)]
        of = {r["case_id"]: r["tumor_volume_ml"] for r in rows}
        chosen = set()
        for seed in range(20):
            split = make_split(rows, validation=0.2, test=0.2, seed=seed)
            for part in (split.validation, split.test):
                burdens = [of[case_id] for case_id in part]
                assert burdens.count(None) == 2
                quarters = [sum(1.5**low <= b < 1.5 ** (low + 10) for b in burdens if b) for low in (10, 20, 30, 40)]
                assert quarters == [2, 2, 2, 2]
            chosen.add(split.test)
        assert len(chosen) == 20

    def test_the_seed_decides(self):
        rows = [row(f"c{i}") for i in range(20)]
        assert make_split(rows, validation=0.2, test=0.2, seed=1) == make_split(rows, validation=0.2, test=0.2, seed=1)
        assert make_split(rows, validation=0.2, test=0.2, seed=1) != make_split(rows, validation=0.2, test=0.2, seed=2)

    def test_three_patients_give_three_parts_and_two_are_too_few(self):
        split = make_split([row("a"), row("b"), row("c")], validation=0.15, test=0.2, seed=0)
        assert all(map(len, (split.train, split.validation)))
        with pytest.raises(StoreError, match="at least 3 patients with a mask"):
            make_split([row("a"), row("b"), row("c", mask=None)], validation=0.15, test=0.2, seed=0)

    def test_a_split_file_is_checked(self, tmp_path):
        path = tmp_path / "split.json"
        split = Split(train=("a",), validation=("b",), test=("c",))
        write_split(path, split)
        assert read_split(path, ["a", "b", "c"]) == split
        with pytest.raises(ConfigError, match="names cases that are not in the store: c"):
            read_split(path, ["a", "b"])
        write_split(path, Split(train=("a",), validation=("a",), test=()))
        with pytest.raises(ConfigError, match="a case is in two parts"):
            read_split(path, ["a"])
        for text in ('{"train": [["a"]], "validation": ["b"]}', '{"train": ["a"], "validation": [2]}', "[1]", '"x"'):
            path.write_text(text)
            with pytest.raises(ConfigError, match="lists train, validation and test"):
                read_split(path, ["a", "b"])
        path.write_text('{"train": 1}')
        with pytest.raises(ConfigError, match="lists train, validation and test"):
            read_split(path, [])
        write_split(path, Split(train=(), validation=("a",), test=()))
        with pytest.raises(ConfigError, match="must each name at least one case"):
            read_split(path, ["a"])

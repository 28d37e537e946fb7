"""Cells that a spreadsheet would compute are guarded, and our readers undo it."""

import csv
import io

from hypothesis import example, given
from hypothesis import strategies as st

from slicemill.common.csv_cells import FORMULA_STARTS, format_csv, guard_cell, unguard_cell, unguard_row
from slicemill.common.files import write_csv

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(texts)
@example("'=1")
@example("''=1")
@example("'")
@example("'-1.5")
@example("-")
@example("-inf")
def test_a_guarded_cell_is_read_back(text):
    assert unguard_cell(guard_cell(text)) == text


@given(st.sampled_from(FORMULA_STARTS), texts)
def test_no_text_starts_like_a_formula_unless_it_is_a_number(start, text):
    cell = guard_cell(start + text)
    if cell.startswith(FORMULA_STARTS):
        float(cell)


@given(st.floats(allow_nan=False) | st.integers() | st.none() | st.booleans())
def test_numbers_stay_numbers(value):
    assert guard_cell(value) is value


@given(st.lists(st.fixed_dictionaries({"case": texts, "=label": texts, "n": st.floats(allow_nan=False)}), min_size=1))
def test_a_table_is_read_back(rows):
    text = format_csv(rows)
    assert "'=label" in text
    read = [unguard_row(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert [row | {"n": float(row["n"])} for row in read] == rows


def test_a_file_of_ours_is_guarded(tmp_path):
    write_csv(tmp_path / "a.csv", [{"case": "=cmd|' '!A0", "ml": -1.5}])
    assert (tmp_path / "a.csv").read_bytes() == b"case,ml\r\n'=cmd|' '!A0,-1.5\r\n"

"""Tables from spreadsheets: read, or refused by what is wrong."""

import pytest

from slicemill.common.errors import InputError
from slicemill.common.tables import read_table

EXPECTED = [{"image": "Müller.nii", "mask": "b;c,d.nii"}]


def read(tmp_path, data, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return [dict(row.cells) for row in read_table(path, required=("image", "mask"), optional=("case_id",), **options)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["", "sep"])
def test_separators_encodings_and_line_ends_are_read(separator, encoding, newline, first, tmp_path):
    lines = [f"sep={separator}"] if first else []
    lines += [separator.join(cells) for cells in (("image", "mask"), ("Müller.nii", '"b;c,d.nii"'))]
    assert read(tmp_path, (newline.join(lines) + newline).encode(encoding)) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        " image , mask \n a.nii , b.nii \n",
        "Image,MASK\na.nii,b.nii\n",
        "image,mask\n\n,\na.nii,b.nii\n,\n",
        "image,mask,\na.nii,b.nii,\n",
        '"image","mask"\n"a.nii","b.nii"',
        "mask;image\nb.nii;a.nii\n",
    ],
    ids=["spaces", "capitals", "empty rows", "separator at the end", "quotes", "order"],
)
def test_what_spreadsheets_add_changes_nothing(text, tmp_path):
    assert read(tmp_path, text) == [{"image": "a.nii", "mask": "b.nii"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("image,label\na,b\n", "has no column mask; the columns are image, mask, case_id .image, mask required."),
        ("image,mask,segmentation\na,b,c\n", "the column 'segmentation' is unknown; the columns are image, mask"),
        ("image,mask,,case_id\na,b,c,d\n", "the column '' is unknown"),
        ("image,mask,Mask\na,b,c\n", "the column 'mask' occurs more than once"),
        ("image,mask\na,b,c\n", "line 2: has 3 cells, but the header has 2 columns"),
        ("image,mask\na,b\n\nc\n", "line 4: has 1 cells"),
        ('image,mask\n"a,b\n', "line 2: cannot be read as CSV"),
        ("sep=|\nimage|mask\na|b\n", "its first line is 'sep=|'"),
        ("", "has no column image, mask; .* the header line has nothing"),
        ("image,mask\nMüller,b\n".encode("latin-1"), "must be UTF-8, or UTF-16 .* byte 12 is 0xfc"),
        ("image,mask\na,b\n".encode("utf-16-le"), "contains UTF-16 without a byte order mark"),
        ("image,mask\na\0,b\n", "contains a NUL character"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(data, message, tmp_path):
    with pytest.raises(InputError, match=r"t\.csv.*" + message.replace("|", r"\|")):
        read(tmp_path, data)


def test_tables_of_points_keep_further_columns_and_a_header_alone_has_no_rows(tmp_path):
    assert read(tmp_path, "image,mask,note\na,b,c\n", keeps_further=True) == [{"image": "a", "mask": "b", "note": "c"}]
    assert read(tmp_path, "image,mask\n") == []


def test_a_table_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("slicemill.common.tables.MAX_BYTES", 10)
    with pytest.raises(InputError, match="has 15 bytes, and a document has at most 10"):
        read(tmp_path, "image,mask\na,b\n")


def test_decimal_commas_are_numbers_unless_commas_separate_cells(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x;y\n-1,5;2.25\n")
    (row,) = read_table(path, required=("x", "y"))
    assert (row.number("x"), row.number("y")) == (-1.5, 2.25)
    for text in ("1.234,5", "1,2,3", "a"):
        path.write_text(f"x;y\n{text};1\n")
        with pytest.raises(ValueError, match="could not convert"):
            read_table(path, required=("x", "y"))[0].number("x")
    for text in ("1_0", "100570_1_19990102"):
        path.write_text(f"x;y\n{text};1\n")
        with pytest.raises(ValueError, match=text):
            read_table(path, required=("x", "y"))[0].number("x")
    path.write_text('x,y\n"1,500",1\n')
    with pytest.raises(ValueError, match="could not convert"):
        read_table(path, required=("x", "y"))[0].number("x")

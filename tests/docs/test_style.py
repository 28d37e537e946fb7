"""Lines, sentences and phrases of the documentation (CONTRIBUTING.md: plain technical English)."""

import re

import pytest

from tests.docs.pages import HERE, PAGES, name_of, read_prose

LINE, WORDS, README_LINES = 140, 35, 150
PHRASES = (
    "as people call it", "at work", "but for what", "explains itself", "first to last", "is asked for", "is earned",
    "not told apart", "the whole way", "told from noise", "what a person wants", "whoever",
)  # fmt: skip
"""Idioms, riddles and inversions that were written here before."""


def sentences(text):
    """Return the sentences of Markdown: of paragraphs, items of lists and cells of tables."""
    text = re.sub(r"<!--.*?-->|^#.*$|^!\[.*$|^:::.*$|^ +options:.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    pieces = re.split(r"\n\s*\n|\n(?=\|)|\n!!!|\|", re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE))
    return [part for piece in pieces for part in re.split(r"(?<=[.!?:;])\s+", " ".join(piece.split())) if part]


def test_sentences_are_counted_as_a_reader_does():
    assert sentences("One `a b` two\nthree. Four\n\n- five\n- six\n\n| seven | eight nine |") == [
        "One code two three.", "Four", "five", "six", "seven", "eight nine"
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page):
    """But for rows of tables, and for single words, like a command in backticks."""
    lines = [re.sub(r"`[^`]*`|\]\([^)]*\)", "code", line) for line in read_prose(page).splitlines()]
    assert [line for line in lines if len(line) > LINE and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page):
    assert [one for one in sentences(read_prose(page)) if len(one.split()) > WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_phrases_that_are_no_plain_english_are_absent(page):
    text = " ".join(read_prose(page).lower().split())
    assert [phrase for phrase in PHRASES if re.search(rf"\b{phrase}\b", text)] == []


def test_the_readme_is_read_in_a_minute():
    assert len((HERE / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_has_one_title(page):
    assert len(re.findall(r"^# ", read_prose(page), re.MULTILINE)) == 1

"""Every command and option of the documentation exists, and every Python block can be parsed."""

import ast
import re
import shlex
import subprocess

import pytest
import typer

from slicemill import cli
from tests.docs.pages import HERE, PAGES, inline_code, name_of, read_blocks

COMMAND = re.compile(r"(?<![\w.-])slicemill ([a-z][a-z-]*(?: [^\n\"`|;>&#]*)?)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OTHERS = {"--nnodes", "--nproc-per-node", "--rdzv-endpoint", "--rdzv-backend", "--help"}
"""Options of torchrun, and the one that every command has."""


def walk(command, name=""):
    """Return name of a command or a group -> its options, without hidden ones, which are old names."""
    shown = [param for param in command.params if not param.hidden]
    found = {name: {option for param in shown for option in (*param.opts, *param.secondary_opts)}}
    for part, child in getattr(command, "commands", {}).items():
        found |= walk(child, f"{name} {part}".strip())
    return found


KNOWN = walk(typer.main.get_command(cli.commands()))


def commands_of(page):
    """Return the commands of a page, in blocks and within the text, each on one line."""
    texts = [block.text.replace("\\\n", " ") for block in read_blocks(page) if block.language in ("sh", "bash", "yaml")]
    return sorted({found.strip() for text in [*texts, *inline_code(page)] for found in COMMAND.findall(text)})


def check_command(line):
    """Return what is wrong with a command line without its first word; None if nothing is."""
    words = line.split()
    name = max((name for name in KNOWN if words[: len(name.split())] == name.split()), key=len)
    if not name:
        return f"no such command: {line}"
    missing = sorted(set(OPTION.findall(line)) - KNOWN[name] - OTHERS)
    return f"{name} has no option {', '.join(missing)}" if missing else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_exists(page):
    assert [fault for line in commands_of(page) if (fault := check_command(line))] == []


def test_a_command_that_does_not_exist_is_found():
    assert check_command("ingset scans/ store/") == "no such command: ingset scans/ store/"
    assert check_command("store verfy store/ --csv") == "store has no option --csv"
    assert check_command("train store/ run/ --epoch 3") == "train has no option --epoch"
    assert check_command("train store/ run/ --epochs 3") is None


def test_commands_are_found_in_all_forms():
    found = [line for page in PAGES for line in commands_of(page)]
    assert "train store/ run/ --batch 128" in found  # after torchrun -m
    assert any(line.startswith("ingest s3://scans/lits") and "--shard" in line for line in found)  # in YAML
    assert len(found) > 100


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_named_in_the_text_belongs_to_some_command(page):
    options = set.union(*KNOWN.values()) | OTHERS
    assert {option for piece in inline_code(page) for option in OPTION.findall(piece)} - options == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_can_be_parsed(page):
    for block in read_blocks(page):
        assert block.language in ("sh", "bash", "python", "toml", "yaml", "text", ""), block
        if block.language == "python":
            ast.parse(block.text)
        if block.language in ("sh", "bash"):
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stderr, block.text)
            assert shlex.split(block.text, comments=True)


def test_every_make_target_exists():
    targets = subprocess.run(["make", "help"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "docs", "test"} <= named
    assert {name for name in named - {"help"} if not re.search(rf"^{name}\s", targets, re.MULTILINE)} == set()

"""Modules joined into one classic script."""

import shutil
import subprocess

import pytest

from slicemill.common.html import VIEWER
from slicemill.common.scripts import join_scripts


def write(folder, **modules):
    for name, text in modules.items():
        (folder / f"{name}.js").write_text(text)
    return folder / "main.js"


def run(script, tmp_path):
    if not shutil.which("node"):
        pytest.skip("node is not here")
    path = tmp_path / "joined.cjs"
    path.write_text(script)
    return subprocess.run(["node", path], capture_output=True, text=True, check=True).stdout.split()


def test_a_joined_script_does_what_the_modules_do(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "low.js").write_text(
        "// @ts-check\n/** A comment with export\nexport const x = 1;\n */\nconst SECRET = 1;\n"
        "export const value = SECRET + 1;\nexport class Kind {}\nexport async function wait() { return 5; }\n"
    )
    entry = write(
        tmp_path,
        middle='import { value } from "./part/low.js";\nconst SECRET = 10;\n'
        "export function add(x) {\n  return x + value + SECRET;\n}\n",
        main='import {\n  add,\n} from "./middle.js";\n'
        'import { Kind, wait } from "./part/low.js";\nconst SECRET = 100;\n'
        "console.log(add(SECRET), new Kind().constructor.name);\nwait().then((x) => console.log(x));\n",
    )
    script = join_scripts(entry)
    assert script.count("SECRET = 1;") == 1, "a module that two import is there once"
    assert "comment" not in script
    assert run(script, tmp_path) == ["112", "Kind", "5"]


@pytest.mark.parametrize(
    "text",
    [
        'import "./other.js";\n',
        'import * as other from "./other.js";\n',
        'const other = import("./other.js");\n',
        "export default 1;\n",
        "export { one };\n",
        "export let one = 1;\n",
        'const text = "</script>";\n',
        'const text = "<!-- ";\n',
    ],
)
def test_other_forms_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match="cannot be joined"):
        join_scripts(write(tmp_path, main=text, other=""))


def test_modules_that_import_each_other_are_refused(tmp_path):
    entry = write(
        tmp_path,
        main='import { a } from "./other.js";\nexport const b = a;\n',
        other='import { b } from "./main.js";\nexport const a = b;\n',
    )
    with pytest.raises(ValueError, match="imports itself"):
        join_scripts(entry)


def test_the_viewer_of_reports_is_small_and_asks_nobody():
    script = join_scripts(VIEWER)
    assert len(script.encode()) < 60_000
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "Worker(", "localStorage", "http:", "https:"):
        assert word not in script

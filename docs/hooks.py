"""Generated parts of the documentation: commands, settings and errors from the code, pictures of benchmarks, notebooks.

mkdocs calls `on_files` and `on_page_markdown` (mkdocs.yml, hooks). A page asks for a part with a comment, like
``<!-- generated: commands -->``.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"\]\((?:\.\./)+bench/results/([\w/]+\.png)\)")
"""A picture of the benchmarks, by the path that also works on a page in the repository."""
NOTEBOOK = re.compile(r"\]\(((?:\.\./)*notebooks/[\w-]+)\.ipynb\)")
"""A link to a notebook, by its path in the repository."""
PART = re.compile(r"<!-- generated: (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of the benchmarks, which are outside docs/, to the site, and a page for each notebook."""
    results = ROOT / "bench" / "results"
    for path in sorted(results.rglob("*.png")):
        name = f"pictures/{path.relative_to(results).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=show_notebook(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 (mkdocs)
    """Fill in the generated parts of a page, and link its pictures and notebooks to their copies in the site."""
    up = "../" * page.file.src_uri.count("/")
    markdown = NOTEBOOK.sub(r"](\1.md)", markdown)
    return PICTURE.sub(rf"]({up}pictures/\1)", PART.sub(lambda part: PARTS[part[1]](), markdown))


def show_notebook(path: Path) -> str:
    """Return a notebook as a page: texts, code, prints and pictures. Links to notebooks lead to their pages."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace(".ipynb)", ".md)"))
        else:
            parts += [f"```python\n{source}\n```", *map(_show_output, cell["outputs"])]
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest]) + "\n"


def _show_output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{data["image/png"]}">'
    text = "".join(output["text"] if "text" in output else data["text/plain"])
    return f"```text\n{text.rstrip()}\n```"


def list_commands() -> str:
    """Return every command with its description, examples, arguments and options."""
    import typer

    from slicemill.cli import commands

    return "\n".join(_describe("slicemill", typer.main.get_command(commands())))


def walk_commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Return the name of each command that is not hidden, with the command; groups without a call are left out."""
    for part, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from walk_commands(f"{name} {part}", child)
    if not hasattr(command, "commands"):
        yield name, command


def _describe(name: str, root: Any) -> Iterator[str]:
    """Yield the options of `root` itself, which come before the name of a command, and every command."""
    for path, command in ((name, root), *walk_commands(name, root)):
        yield f"\n## {path}\n"
        yield _format_help(inspect.cleandoc(command.help or ""))
        context = command.make_context(path, [], resilient_parsing=True)
        shown = [param for param in command.params if not param.hidden and param.name != "help"]
        for panel in dict.fromkeys(_panel(param) for param in shown):
            yield f"\n| {panel} | | default | |\n|---|---|---|---|"
            for param in (one for one in shown if _panel(one) == panel):
                yield _row(param, context)


def _panel(param: Any) -> str:
    if param.param_type_name == "argument":
        return "argument"
    return (param.rich_help_panel or "option").lower()


def _row(param: Any, context: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    is_flag = getattr(param, "is_flag", False)
    form = "" if is_flag else _form(param, context)
    has_default = not (is_flag or param.default is None or param.default == ())
    default = "required" if param.required else f"`{param.default}`" if has_default else ""
    cells = (names, form, default, " ".join((param.help or "").split()).replace("|", r"\|"))
    return f"| {' | '.join(cells)} |"


def _form(param: Any, context: Any) -> str:
    """Return the type or the choices of a parameter, from its line in ``--help``."""
    record = param.get_help_record(context)
    words = re.sub(r"^[-\w, /]*?(?=[<\[{])|[<>\[\]{}]", "", record[0] if record else "").strip()
    return "" if words in (param.name, *param.opts) else re.sub(r"\s*\|\s*", ", ", words)


def _format_help(text: str) -> str:
    """Return a command's help as Markdown, with its examples as code."""
    lines = text.splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith(("slicemill ", "infer "))]
    rest = "\n".join(line for line in lines if line.strip() not in examples).strip()
    rest = rest.replace("<", "&lt;").replace("*", r"\*")
    return f"{rest}\n\n```sh\n{chr(10).join(examples)}\n```" if examples else rest


def list_settings() -> str:
    """Return every setting of a training, with its default."""
    from slicemill.train.config import Config

    texts = _attribute_docs(Config)
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {texts[field.name]} |".replace("'", '"')
        for field in dataclasses.fields(Config)
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def _attribute_docs(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass."""
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(kind), re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`").replace("|", r"\|") for name, text in found}


def list_errors() -> str:
    """Return the tree of the errors."""
    from slicemill.common import errors

    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    return f"```text\n{inspect.cleandoc(tree)}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "commands": list_commands,
    "settings": list_settings,
    "errors": list_errors,
}
"""Name of a generated part, and the function that writes it."""

"""The notebooks of the documentation, run without a kernel.

``python -m tests.docs.notebooks FOLDER`` runs them where FOLDER has the folder ``demo`` of `slicemill demo`, and keeps
what they print and draw. The tests run them on smaller inputs.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path

from tests.docs.pages import HERE

NOTEBOOKS = sorted((HERE / "docs" / "notebooks").glob("*.ipynb"))
DPI = 72


def run(notebook, folder):
    """Run the cells in order in one namespace, and return the notebook with their outputs: texts and pictures.

    Parameters
    ----------
    folder
        The working folder of the cells.
    """
    names = {"__name__": "__main__"}
    cells, count = [], 0
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                outputs = list(_run_cell("".join(cell["source"]), names, count))
                cells.append({**cell, "execution_count": count, "outputs": outputs})
            else:
                cells.append(cell)
    return {**notebook, "cells": cells}


def _run_cell(source, names, count):
    """Run a cell, and yield what it printed, the value of its last line, and the figures that it left open."""
    tree, printed, value = ast.parse(source), io.StringIO(), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)  # noqa: S102 (our own cells)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)  # noqa: S307
    if printed.getvalue():
        yield {"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)}
    if value is not None and not source.rstrip().endswith(";"):  # as in Jupyter
        text = repr(value).splitlines(keepends=True)
        yield {"data": {"text/plain": text}, "execution_count": count, "metadata": {}, "output_type": "execute_result"}
    for picture in _take_figures():
        text = base64.b64encode(picture).decode()
        yield {"data": {"image/png": text}, "metadata": {}, "output_type": "display_data"}


def _take_figures():
    """Yield the open figures of matplotlib as PNG, and close them, as Jupyter does after each cell."""
    from matplotlib import pyplot

    for number in pyplot.get_fignums():
        buffer = io.BytesIO()
        pyplot.figure(number).savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
        yield buffer.getvalue()
    pyplot.close("all")


def main():
    os.environ["MPLBACKEND"] = "agg"
    for path in NOTEBOOKS:
        notebook = run(json.loads(path.read_text()), Path(sys.argv[1]))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

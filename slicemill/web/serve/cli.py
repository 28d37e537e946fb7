"""The command `slicemill serve`."""

from pathlib import Path
from typing import Annotated

import typer

from slicemill.common.options import MACHINE, OUTPUT
from slicemill.infer.request import ProviderName


def serve(
    model: Annotated[
        list[Path],
        typer.Argument(
            help="ONNX files or NAME.nodules of `slicemill export`; the page offers the choice.", metavar="MODEL..."
        ),
    ],
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keep the results of each scan in this folder. Without it, nothing is kept.",
            file_okay=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    provider: ProviderName = "auto",
    port: Annotated[
        int, typer.Option(help="Port of the page. 0 takes a free one.", min=0, max=65535, rich_help_panel=MACHINE)
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.", rich_help_panel=MACHINE)] = True,
) -> None:
    """Open a page in the browser: drop a CT scan, see whether there is a tumor.

    slicemill serve liver.onnx

    It takes DICOM (files, folder, zip), NIfTI, MetaImage, NRRD, and a picture (PNG, JPEG). The page is served to this
    machine only; scans are removed when it ends. Research software, not a medical device. Ctrl-C ends it.
    """
    from slicemill.common.extras import require_extras

    require_extras("web")
    from slicemill.web.serve.run import run_server

    run_server(model, provider, keep, port, opens_browser=browser)

"""The command `slicemill view`."""

from pathlib import Path
from typing import Annotated

import typer

from slicemill.common.options import INPUT, LABELS, MACHINE, OUTPUT


def view(
    path: Annotated[
        str,
        typer.Argument(help="A scan, a slice store (also s3:// URL), or a folder of masks or DICOM.", metavar="PATH"),
    ],
    mask: Annotated[list[str] | None, typer.Argument(help="Masks of the scan.", metavar="[MASK]...")] = None,
    scans: Annotated[
        Path | None, typer.Option(help="Folder of the masks' scans. By default beside them.", rich_help_panel=INPUT)
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(help="Store or folder with reference masks and scans of the same cases.", rich_help_panel=INPUT),
    ] = None,
    worst_first: Annotated[
        Path | None,
        typer.Option(
            help="Output of `slicemill evaluate`: the cases with the lowest Dice come first.", rich_help_panel=INPUT
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Names of the label values, like liver=1,tumor=2.", rich_help_panel=LABELS),
    ] = None,
    organ: Annotated[
        str | None, typer.Option(help="Label of the organ without its tumors.", rich_help_panel=LABELS)
    ] = None,
    tumor: Annotated[str | None, typer.Option(help="Label of tumor.", rich_help_panel=LABELS)] = None,
    marks: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for the marks that you set; one that exists is continued.",
            dir_okay=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port of the page. 0 takes a free one.", min=0, max=65535, rich_help_panel=MACHINE)
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.", rich_help_panel=MACHINE)] = True,
) -> None:
    """Show scans with their masks in the browser: slices, outlines, lesions.

    slicemill view ct.nii.gz mask.nii.gz
    slicemill view dicom/ tumor.seg.dcm
    slicemill view lits-store/ --marks marks.csv
    slicemill view segmented/ --references lits-store/ --worst-first scores/

    The page is served to this machine only, and loads nothing from elsewhere. Ctrl-C ends it.
    """
    from slicemill.common.extras import require_extras
    from slicemill.common.files import parse_location
    from slicemill.ct.labels import choose_labels
    from slicemill.web.entries import ViewRequest

    require_extras("web")
    from slicemill.web.run import run_viewer

    request = ViewRequest(
        path=parse_location(path),
        masks=tuple(parse_location(one) for one in mask or ()),
        scans=scans,
        references=references,
        labels=choose_labels(labels, None, organ, tumor),
        evaluation=worst_first,
    )
    run_viewer(request, marks, port, opens_browser=browser)

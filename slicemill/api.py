"""The public Python functions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from slicemill.infer.runtime.providers import Provider
    from slicemill.store.reader import Store


def open_store(url: str | Path) -> "Store":
    """Open a slice store for reading; see `slicemill.store.reader.Store`.

    Raises
    ------
    slicemill.common.errors.StoreError
        There is no store at `url`.
    """
    from slicemill.store import reader

    return reader.open_store(url)


def segment(
    path: str | Path, model: str | Path, *, provider: "Provider" = "auto", strict: bool = False
) -> "tuple[npt.NDArray[np.uint8], dict[str, Any]]":
    """Segment one scan.

    Each call opens the model and, on another device, compares its labels with the CPU's. Use the command `infer` for
    many scans.

    Parameters
    ----------
    path
        The scan.
    model
        ONNX file of `slicemill export`.
    provider
        Execution provider: auto, cpu, cuda, tensorrt or openvino.
    strict
        Whether a scan with a warning is refused.

    Returns
    -------
    label : uint8[z, y, x]
        Label values in LPS+ order.
    report : dict
        Volumes in ml, lesions, and whether there is a tumor: the JSON report of the command `infer`. Read its
        ``warnings``: a scan whose HU do not look like a CT is segmented nevertheless.

    Raises
    ------
    slicemill.common.errors.InputError
        The scan, the model or the provider cannot be used, or `strict` refuses the scan; the message has the reason.
    """
    from slicemill.infer.single import segment_file

    return segment_file(Path(path), Path(model), provider=provider, strict=strict)

"""The extras of the installation: which packages they bring, and the command that adds one that is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from slicemill.common.errors import ConfigError, InputError
from slicemill.common.failures import raise_system_limit

PACKAGES: dict[str, tuple[str, ...]] = {
    "ingest": ("dask", "distributed", "matplotlib"),
    "train": ("torch", "onnx", "onnxscript", "safetensors", "tensorboard", "matplotlib"),
    "cpu": ("onnxruntime",),
    "openvino": ("openvino",),
    "s3": ("obstore", "boto3"),
    "dicom": ("pydicom", "highdicom", "imagecodecs"),
    "web": ("starlette", "uvicorn"),
}
"""Extra -> the packages, by import name, that commands import from it. `gpu` has the same package as `cpu`."""


def describe_missing(error: BaseException) -> str | None:
    """Return what is missing and the command that installs it, if a package of an extra could not be imported.

    >>> describe_missing(ModuleNotFoundError("No module named 'torch'", name="torch"))
    "torch is not installed. Run: pip install 'slicemill[train]'"
    >>> describe_missing(ModuleNotFoundError("No module named 'slicemill.spell'", name="slicemill.spell")) is None
    True
    """
    for cause in _causes(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name is not None:
            package = cause.name.partition(".")[0]
            extra = find_extra(package)
            if extra is not None:
                return f"{package} is not installed. {describe_install(extra)}"
    return None


@contextmanager
def name_missing_extras() -> Iterator[None]:
    """Name the extra to install where a package of one cannot be imported, also as a decorator of a function.

    Raises
    ------
    ConfigError
        A package of an extra is not installed. The message has the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        missing = describe_missing(error)
        if missing is None:
            raise
        raise ConfigError(missing) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextmanager
def explain_import(package: str, missing: InputError) -> Iterator[None]:
    """Raise `missing` if the block cannot import a package because it is not installed.

    Raises
    ------
    InputError
        `missing`, or one of the same type if the package is installed and cannot be loaded. A lack of memory stays what
        it is.
    """
    try:
        yield
    except ImportError as error:
        raise_system_limit(error)
        if isinstance(error, ModuleNotFoundError) and (error.name or package).partition(".")[0] == package:
            raise missing from error
        reason = f"the package {package} is installed but cannot be loaded ({error}). Reinstall it, or what it names."
        raise type(missing)(reason, where=missing.where or None) from error


def find_extra(package: str) -> str | None:
    """Return the first extra that brings a package, or None."""
    return next((extra for extra, packages in PACKAGES.items() if package in packages), None)


def describe_install(*extras: str) -> str:
    """Return the sentence with the command that installs extras.

    >>> describe_install("ingest", "cpu")
    "Run: pip install 'slicemill[ingest,cpu]' (on a machine with an NVIDIA GPU, gpu in place of cpu)"
    """
    note = " (on a machine with an NVIDIA GPU, gpu in place of cpu)" if "cpu" in extras else ""
    return f"Run: pip install 'slicemill[{','.join(extras)}]'{note}"


def require_extras(*extras: str) -> None:
    """Check that all packages of some extras are installed, before long work begins.

    Raises
    ------
    ConfigError
        Some are not. The message has one command that installs them all.
    """
    from importlib.util import find_spec

    missing = {extra: [one for one in PACKAGES[extra] if find_spec(one) is None] for extra in extras}
    needed = [extra for extra, packages in missing.items() if packages]
    if needed:
        absent = list(dict.fromkeys(package for packages in missing.values() for package in packages))
        raise ConfigError(f"not installed: {', '.join(absent)}. {describe_install(*needed)}.")

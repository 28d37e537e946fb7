"""Errors that a user can correct. Each message names the file, the rule and the value, and says how to fix it.

    InputError                  an input breaks a stated rule
    ├── ScanError               a file cannot be read as a CT scan or a segmentation
    │   ├── GeometryError       shape, affine or orientation breaks a rule
    │   └── ReadError           a file cannot be read because of disk, network or access rights; try again later
    ├── LabelError              label values or names do not fit
    ├── PairingError            images and masks cannot be recognized or paired
    ├── StoreError              a slice store is missing, damaged or has other parameters
    │   └── NoCaseError         a case that a store does not have; also a KeyError
    ├── ConfigError             a setting that does not exist or is not possible
    │   └── UsageError          an option's value that is never valid, or options that exclude each other
    ├── ModelError              an ONNX file that is not a slicemill model, or fails its parity check
    └── ProviderError           the requested execution provider cannot run

Commands print ``slicemill: <message>`` and exit 1, or 2 for a UsageError. Any other exception is a bug and keeps its
traceback.
"""


class InputError(ValueError):
    """An input breaks a stated rule; the message says how to fix it.

    Parameters
    ----------
    reason
        The rule, the value and what to do.
    where
        The file, or the place in one, that the reason is about; the message begins with it. None if the reason is about
        an option or several files, or where the caller knows the file.

    >>> str(InputError("ends early. Copy the file again.", where="in/volume-17.nii"))
    'in/volume-17.nii: ends early. Copy the file again.'
    """

    def __init__(self, reason: str, *, where: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = "" if where is None else str(where)

    def __str__(self) -> str:
        """Return the message: where, and the reason."""
        return f"{self.where}: {self.reason}" if self.where else self.reason


class ScanError(InputError):
    """A file cannot be read as a CT scan or a segmentation."""


class GeometryError(ScanError):
    """Shape, affine or orientation breaks a rule."""


class ReadError(ScanError):
    """A file cannot be read because of disk, network or access rights; the file may be good."""


class LabelError(InputError):
    """Label values or names do not fit."""


class PairingError(InputError):
    """Images and masks cannot be recognized or paired."""


class StoreError(InputError):
    """A slice store is missing, damaged or was written with other parameters."""


class NoCaseError(StoreError, KeyError):
    """A case that a store does not have; also a KeyError, because a store is a mapping."""


class ConfigError(InputError):
    """A setting that does not exist or is not possible."""


class UsageError(ConfigError):
    """An option's value that is never valid, or options that exclude each other."""


class ModelError(InputError):
    """An ONNX file that is not a slicemill model, or that fails its parity check."""


class ProviderError(InputError):
    """The requested execution provider cannot run here."""

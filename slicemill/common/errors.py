"""The errors a user can mend. Each message says what and where, the rule, the value found and the way out.

    InputError                  something a person handed in breaks a stated rule
    ├── ScanError               a file that cannot be read as a CT scan or a segmentation
    │   ├── GeometryError       shape, affine or orientation breaks a rule
    │   └── ReadError           the disk, the network or its rights kept a file from being read; another time it may be
    ├── LabelError              label values or names do not fit
    ├── PairingError            images and masks cannot be told apart or paired
    ├── StoreError              a slice store is missing, damaged or of other parameters
    ├── ConfigError             a setting that does not exist or cannot work
    │   └── UsageError          the value of an option that no data could make right, or options that do not go together
    ├── ModelError              an ONNX file that is not a slicemill model, or fails its parity gate
    └── ProviderError           the execution provider asked for cannot run

The command line prints ``slicemill: <message>`` and exits 1, or 2 for a UsageError. Any other exception is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """Something a person handed in breaks a stated rule; the message names the way out."""


class ScanError(InputError):
    """A file that cannot be read as a CT scan or a segmentation."""


class GeometryError(ScanError):
    """Shape, affine or orientation breaks a rule."""


class ReadError(ScanError):
    """The disk, the network or its rights kept a file from being read; nothing is said of the file itself."""


class LabelError(InputError):
    """Label values or names do not fit."""


class PairingError(InputError):
    """Images and masks cannot be told apart or paired."""


class StoreError(InputError):
    """A slice store is missing, damaged or was written with other parameters."""


class ConfigError(InputError):
    """A setting that does not exist or cannot work."""


class UsageError(ConfigError):
    """The value of an option that no data could make right, or options that do not go together."""


class ModelError(InputError):
    """An ONNX file that is not a slicemill model, or that fails its parity gate."""


class ProviderError(InputError):
    """The execution provider asked for cannot run here."""

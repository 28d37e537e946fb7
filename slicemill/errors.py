"""All errors that a user can correct. `InputError` is the base of the others; its text says how to fix the input.

>>> from slicemill import errors
>>> issubclass(errors.StoreError, errors.InputError)
True
"""

from slicemill.common.errors import (
    ConfigError,
    GeometryError,
    InputError,
    LabelError,
    ModelError,
    NoCaseError,
    PairingError,
    ProviderError,
    ReadError,
    ScanError,
    StoreError,
    UsageError,
)

__all__ = [
    "ConfigError",
    "GeometryError",
    "InputError",
    "LabelError",
    "ModelError",
    "NoCaseError",
    "PairingError",
    "ProviderError",
    "ReadError",
    "ScanError",
    "StoreError",
    "UsageError",
]

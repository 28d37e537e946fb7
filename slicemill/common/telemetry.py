"""onnxruntime reports to its maker how it is used, on Linux from version 1.29 on, unless it is told not to.

It writes an identifier of the machine below the home folder, and sends events about sessions and models
(github.com/microsoft/onnxruntime/pull/27379). A tool that reads scans of patients sends nothing to anybody.
"""

import os

SWITCH = "ORT_DISABLE_TELEMETRY"
"""Variable of onnxruntime, which reads it once, when it is loaded."""


def turn_off_telemetry() -> None:
    """Turn the reports off; call it before each import of onnxruntime."""
    os.putenv(SWITCH, "1")

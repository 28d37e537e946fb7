"""Shortens the long error messages of onnxruntime, OpenVINO and protobuf."""

import re

MAX_CHARACTERS = 200
FAILURE = re.compile(r"(?:[A-Z_]+ failure -?\d+: |CUDA error \w+:)[^;]*[^;\s]")
"""What onnxruntime reports of a failed call of CUDA or cuDNN, between C++ signatures and the name of the machine."""
STATUS = re.compile(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ")
SOURCE = re.compile(r"/\S+\.(?:cc|cu|h):\d+ .*?\) (?=[A-Z])|\b\w+\.(?:cc|cu|h):\d+ \w+(?:\(\))? ")
"""A place in onnxruntime's source, with the function there."""
NODE = re.compile(r"while running (\w+) node")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, of at most 200 characters; its type when it has no message.

    Of onnxruntime's messages, only the cause is left.

    >>> first_line(ValueError("no such node\\nin the graph")), first_line(MemoryError())
    ('no such node', 'MemoryError')
    >>> first_line(RuntimeError("/src/a.cc:63 static Info Info::From(const Options&) [ONNXRuntimeError] : 1 : FAIL : "
    ...     "options.h:182 Parse Unknown provider option: a."))
    'Unknown provider option: a'
    >>> first_line(RuntimeError("Error in execution: Non-zero status code returned while running Cast node. Name:'a' "
    ...     "Status Message: CUDA error cudaErrorLaunchFailure:unspecified launch failure"))
    'Cast: CUDA error cudaErrorLaunchFailure:unspecified launch failure'
    """
    text = str(error).strip()
    return _find_cause(text.splitlines()[0])[:MAX_CHARACTERS] if text else type(error).__name__


def _find_cause(line: str) -> str:
    if failure := FAILURE.search(line):
        node = NODE.search(line)
        return f"{node[1]}: {failure[0]}" if node else failure[0]
    return SOURCE.sub("", STATUS.sub("", line)).rstrip(".")

"""Finds the cause in the long error messages of onnxruntime, OpenVINO, torch and protobuf."""

import re

from slicemill.common.errors import InputError, ModelError, ProviderError
from slicemill.common.failures import NO_MEMORY

MAX_CHARACTERS = 2000
"""Of a longer cause, the middle is left out."""
FAILURE = re.compile(r"(?:[A-Z_]+ failure -?\d+: |CUDA error \w+:)[^;]*[^;\s]")
"""What onnxruntime reports of a failed call of CUDA or cuDNN, between C++ signatures and the name of the machine."""
STATUS = re.compile(r".*\[ONNXRuntimeError\] : \d+ : \w+ : ")
SOURCE = re.compile(r"/\S+\.(?:cc|cu|h):\d+ .*?\) (?=[A-Z])|\b\w+\.(?:cc|cu|h):\d+ \w+(?:\(\))? ")
"""A place in onnxruntime's source, with the function there."""
HEADINGS = re.compile(r"Exception from \S+:\d+:|Traceback .*:|File \S+, line .*")
"""Lines without a cause: places in source code, of OpenVINO and Python."""
WRONG_SHAPE = re.compile(
    r"output '(\w+)' .*?has shape \{([\d,]*)\} but the computed output shape for this run is \{([\d,]*)\}"
)
"""What onnxruntime reports when an output does not fit the buffer that its declared shape asks for."""
NODE = re.compile(r"while running (\w+) node")


def find_cause(error: BaseException) -> str:
    """Return the cause that an error's message names, in one line; its type when it has no message.

    It is the first line that is no heading, with headings before it that are no places in source code. Of onnxruntime's
    messages, only the cause is left.

    >>> find_cause(ValueError("Node a:\\n  no such input.\\nTry b.")), find_cause(MemoryError())
    ('Node a: no such input', 'MemoryError')
    >>> find_cause(RuntimeError("/src/a.cc:63 static Info Info::From(const Options&) [ONNXRuntimeError] : 1 : FAIL : "
    ...     "options.h:182 Parse Unknown provider option: a."))
    'Unknown provider option: a'
    >>> find_cause(RuntimeError("Exception from src/core.cpp:109:\\nException from src/core.cpp:41:\\nno such device"))
    'no such device'
    >>> find_cause(RuntimeError("Error in execution: Non-zero status code returned while running Cast node. Name:'a' "
    ...     "Status Message: CUDA error cudaErrorLaunchFailure:unspecified launch failure"))
    'Cast: CUDA error cudaErrorLaunchFailure:unspecified launch failure'
    """
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not HEADINGS.fullmatch(line)] or [line for line in lines if line]
    if not kept:
        return type(error).__name__
    end = next((index for index, line in enumerate(kept) if not line.endswith(":")), len(kept) - 1)
    cause = _clean(" ".join(kept[: end + 1]))
    half = MAX_CHARACTERS // 2
    return cause if len(cause) <= MAX_CHARACTERS else f"{cause[:half]} [...] {cause[-half:]}"


def explain_batch_failure(provider: str, cause: str) -> InputError:
    """Return the error of a batch that did not run, by its cause: the model's, the memory's or the device's.

    >>> str(explain_batch_failure("cuda", "CUDA error 700"))
    'cuda: the device failed (CUDA error 700).'
    >>> str(explain_batch_failure("cpu", "std::bad_alloc"))
    'cpu: not enough memory for a batch (std::bad_alloc). Use a smaller --batch.'
    """
    if match := WRONG_SHAPE.search(cause):
        name, declared, returned = match[1], *(part.replace(",", " x ") for part in match.group(2, 3))
        return ModelError(
            f"the model's output {name} must have the shape that it declares, {declared} for this batch; it has "
            f"{returned}. The model file is wrong: export it again."
        )
    if NO_MEMORY.search(cause):
        return ProviderError(f"{provider}: not enough memory for a batch ({cause}). Use a smaller --batch.")
    return ProviderError(f"{provider}: the device failed ({cause}).")


def _clean(text: str) -> str:
    if failure := FAILURE.search(text):
        node = NODE.search(text)
        return f"{node[1]}: {failure[0]}" if node else failure[0]
    return SOURCE.sub("", STATUS.sub("", text)).rstrip(".")

"""Shortens the long error messages of onnxruntime, OpenVINO and protobuf."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, of at most 200 characters; its type when it has no message.

    >>> first_line(ValueError("no such node\\nin the graph")), first_line(MemoryError())
    ('no such node', 'MemoryError')
    """
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__

"""Time of a device by operator and kernel, from onnxruntime's profiling file and from the GPU's own trace."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

KINDS = {
    "convolutions": r"conv(?!ert)|gemm|xmma|cutlass|wgrad|dgrad|fprop|winograd|implicit|nvjet",
    "layout": r"transpose|nchw|nhwc|convert|permute|reorder",
    "copies": r"memcpy|memset",
}
"""Kind of a kernel -> pattern of its name; the first match counts. All others are elementwise."""
SHOWN = 12
"""Operators or kernels that are listed by name."""


def kernel_kind(name: str) -> str:
    """Return the kind of a kernel, or of an operator of ONNX, by its name.

    >>> [kernel_kind(name) for name in ("sm90_xmma_fprop_implicit_gemm_f16", "nchwToNhwcKernel", "Relu", "FusedConv")]
    ['convolutions', 'layout', 'elementwise', 'convolutions']
    """
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "elementwise")


def time_by_operator(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return microseconds by operator of a profiling file's events, or by kernel if onnxruntime traced kernels.

    The first run is left out, because it makes plans. On a GPU an operator's time is that of the call that starts its
    kernel, not of the kernel.
    """
    events = list(events)
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    spent: dict[str, Counter[str]] = {"Node": Counter(), "Kernel": Counter()}
    for event in events:
        if len(starts) > 1 and event.get("ts", 0) < starts[1]:
            continue
        kind, name = event.get("cat", ""), str(event.get("name", ""))
        if kind == "Kernel":
            spent[kind][name] += event["dur"]
        elif kind == "Node" and name.endswith("_kernel_time"):
            spent[kind][str(event["args"]["op_name"])] += event["dur"]
    return dict(spent["Kernel"] or spent["Node"])


def time_by_kernel(work: Callable[[], object]) -> dict[str, float]:
    """Return microseconds by kernel that the GPU ran during some work; empty without a GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return {str(row.key): float(row.self_device_time_total) for row in profiled.key_averages()}


def summarize(spent: Mapping[str, float]) -> dict[str, Any]:
    """Return the kind that takes most of the time, the share of each kind, and the names that take most.

    >>> summarize({"Conv": 6.0, "Relu": 3.0, "Concat": 1.0})["kinds"]
    {'convolutions': 0.6, 'elementwise': 0.4}
    """
    total = sum(spent.values()) or 1.0
    kinds: dict[str, float] = {}
    for name, microseconds in spent.items():
        kinds[kernel_kind(name)] = kinds.get(kernel_kind(name), 0.0) + microseconds / total
    shares = sorted(kinds.items(), key=lambda item: -item[1])
    largest = sorted(spent.items(), key=lambda item: -item[1])[:SHOWN]
    return {
        "bound": shares[0][0] if shares else None,
        "kinds": {kind: round(share, 4) for kind, share in shares},
        "names": {name: round(microseconds / total, 4) for name, microseconds in largest},
        "milliseconds": round(total / 1000, 3) if spent else 0.0,
    }

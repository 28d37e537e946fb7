"""What a device spends its time on: onnxruntime's profiling file, and the kernels that the card ran, summed."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

KINDS = {
    "convolutions": r"conv(?!ert)|gemm|xmma|cutlass|wgrad|dgrad|fprop|winograd|implicit|nvjet",
    "layout": r"transpose|nchw|nhwc|convert|permute|reorder",
    "copies": r"memcpy|memset",
}
"""Kinds of kernels by what their names hold, the first that fits; all others read, do little and write: elementwise."""
SHOWN = 12


def kind_of(name: str) -> str:
    """Return the kind of a kernel, or of an operator of ONNX, by its name.

    >>> [kind_of(name) for name in ("sm90_xmma_fprop_implicit_gemm_f16", "nchwToNhwcKernel", "Relu", "FusedConv")]
    ['convolutions', 'layout', 'elementwise', 'convolutions']
    """
    return next((kind for kind, said in KINDS.items() if re.search(said, name, re.IGNORECASE)), "elementwise")


def by_operator(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return microseconds by operator of a profiling file's events, or by kernel where onnxruntime was built to see them.

    The first run is left out: plans are made in it. On a GPU an operator's time is that of the call that starts it, not of its
    kernel.
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


def by_kernel(work: Callable[[], object]) -> dict[str, float]:
    """Return microseconds by kernel that a card ran during some work, whoever started it; empty without a card."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return {str(row.key): float(row.self_device_time_total) for row in profiled.key_averages()}


def summed(spent: Mapping[str, float]) -> dict[str, Any]:
    """Return the kind that takes most of the time, shares by kind, and those that take most by name.

    >>> summed({"Conv": 6.0, "Relu": 3.0, "Concat": 1.0})["kinds"]
    {'convolutions': 0.6, 'elementwise': 0.4}
    """
    total = sum(spent.values()) or 1.0
    kinds: Counter[str] = Counter()
    for name, time in spent.items():
        kinds[kind_of(name)] += time / total  # type: ignore[assignment] # a counter may count in fractions
    most = sorted(spent.items(), key=lambda item: -item[1])[:SHOWN]
    return {
        "bound": max(kinds, key=lambda kind: kinds[kind]) if kinds else None,
        "kinds": {kind: round(share, 4) for kind, share in kinds.most_common()},
        "names": {name: round(time / total, 4) for name, time in most},
        "milliseconds": round(total / 1000, 3) if spent else 0.0,
    }

"""Limits of a process that reads bytes from outside."""

import os
import resource

GIB = 1 << 30
CPU_SECONDS = 1800
MOST_FILE_BYTES = 16 * GIB
"""Largest file that it writes: 8 bytes for each of the most voxels of a scan, and some more."""
THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Environment of the process: each thread of these libraries takes address space."""


def memory_bytes() -> int:
    """Return the memory that the process may take: half of the machine's, between 2 and 16 GiB."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(16 * GIB, max(2 * GIB, physical // 2))


def limit_process() -> None:
    """Limit memory, time and files of this process. It writes no core file, which would hold a patient's data."""
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes()),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, MOST_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))

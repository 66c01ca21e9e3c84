"""Memory is asked for before it is needed where the lack of it would end the process.

OpenBLAS takes its work space with the first product of matrices, and ends the process where the system has none: under
a limit on memory (`ulimit -v`, a batch system) what is about to call BLAS lets it take its space first, where that is
granted.
"""

from __future__ import annotations

import mmap
import os
from functools import cache

import numpy as np

from .blas_threads import libraries, one_blas_thread
from .threads import processors

__all__ = ["available", "blas_callers", "modest", "numpy_blas", "require", "scipy_blas"]

BUFFER = 34 << 20
"""Bytes that a caller of an OpenBLAS library holds (32 MB, and what it is aligned by)."""

LIBRARY = 100 << 20
"""Bytes that scipy's linear algebra and its OpenBLAS map when they are loaded."""

CONTAINERS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where a container says what memory it may have, and has."""

THREAD = 44 << 20
"""Bytes of each further thread of OpenBLAS: a buffer and a stack."""


ANYWAY = 1 << 20
"""Bytes that an interpreter which goes on at all has to have, so that nobody asks for them."""


def limited() -> bool:
    """Whether a limit on memory is set for this process."""
    try:
        import resource
    except ImportError:
        return False  # not POSIX
    return any(
        resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )


def granted(size: int) -> bool:
    """Whether the system grants so many bytes at present."""
    try:
        mmap.mmap(-1, max(size, 1)).close()
    except (OSError, OverflowError, ValueError):
        return False
    return True


def available() -> float:
    """Bytes that this process can hope for: what the machine has free, within the limit of a container."""
    found = [float("inf")]
    try:
        with open("/proc/meminfo") as file:
            found += [float(line.split()[1]) * 1024.0 for line in file if line.startswith("MemAvailable")]
    except OSError:  # not Linux
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in CONTAINERS:
        try:
            with open(limit) as most, open(used) as now:
                found.append(float(most.read()) - float(now.read()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return max(min(found), 0.0)


def modest(size: int) -> bool:
    """Whether so few bytes are needed that nobody asks for them."""
    return size <= ANYWAY


def require(size: int, purpose: str) -> None:
    """Nothing, where the system grants so many bytes.

    Raises
    ------
    MemoryError
        That names the purpose, where it does not.
    """
    if not modest(size) and not granted(size):
        raise MemoryError(f"{purpose}: {size / 2**20:,.0f} MB of memory are needed and not granted; raise the limit")


def numpy_blas() -> None:
    """Let numpy's BLAS take its work space, where memory is limited.

    Raises
    ------
    MemoryError
        Where there is no room for it.
    """
    if limited():
        _numpy_blas()


@cache
def _numpy_blas() -> None:
    require(BUFFER, "products of matrices (numpy's BLAS)")
    square = np.ones((128, 128))
    _ = square @ square


def scipy_blas() -> None:
    """Load scipy's BLAS and let it take its work space, where memory is limited.

    Raises
    ------
    MemoryError
        Where there is no room for it.
    """
    if limited():
        _scipy_blas()


@cache
def _scipy_blas() -> None:
    _numpy_blas()
    stated = [os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")]
    threads = min([processors(), *(int(number) for number in stated if number.isdigit() and int(number) > 0)])
    # a change of the number of threads takes a buffer of each library for good
    require(LIBRARY + 3 * BUFFER + (threads - 1) * THREAD, "several grouping factors (scipy's BLAS)")
    from scipy.linalg.blas import dgemm

    libraries.cache_clear()
    square = np.ones((128, 128), order="F")
    with one_blas_thread():
        dgemm(1.0, square, square)
        _ = square @ square


def blas_callers(wanted: int) -> int:
    """How many threads, up to so many, may call both libraries at a time: at least one."""
    while wanted > 1 and not granted(2 * (wanted - 1) * BUFFER):
        wanted -= 1
    return wanted

"""One BLAS thread for matrices of moderate size.

BLAS divides products of matrices of a hundred columns already, and serves one caller at a time: threads of ours that
call it then wait for each other, and on a busy machine each call waits for all of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import Array

__all__ = ["blas_threads", "libraries", "one_blas_thread", "quiet_blas", "quiet_product"]

DIVIDED_FROM, SHARED_FROM = 9000, 1e9
"""Elements of a matrix from which OpenBLAS divides its product with a vector, and operations of a product with its
transpose from which a second thread saves more than it takes: it spins for some 25 ms after each call."""


_AS_IT_IS = nullcontext()

_lock = threading.Lock()
_users = 0
_before: list[tuple[Any, int]] = []


@cache
def libraries() -> Any:
    """The BLAS libraries that are loaded; whoever loads another clears this cache."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas_threads() -> int:
    """Threads that BLAS may use: what the environment, threadpoolctl and `one_blas_thread` allow."""
    return min((threads for _, threads in _counts()), default=1)


def _counts() -> list[tuple[Any, int]]:
    """The libraries of BLAS, and the threads of each; some do not tell."""
    found = [(one, one.num_threads) for one in libraries().lib_controllers if one.user_api == "blas"]
    return [(one, int(threads)) for one, threads in found if threads is not None]


def one_blas_thread(wanted: bool = True) -> AbstractContextManager[None]:
    """BLAS uses one thread in this block, where that is wanted.

    May be entered by several threads: the number of before comes back with the last to leave.
    """
    return _one_thread() if wanted else _AS_IT_IS


@contextmanager
def _one_thread() -> Iterator[None]:
    global _users, _before
    with _lock:
        _users += 1
        if _users == 1:
            # threadpoolctl's own limits ask each library for all that it knows
            _before = [(one, threads) for one, threads in _counts() if threads != 1]
            for one, _ in _before:
                one.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for one, threads in _before:
                    one.set_num_threads(threads)


def quiet_blas(rows: int, columns: int) -> AbstractContextManager[None]:
    """One BLAS thread in this block, where others would be woken for the products of such a matrix and gain little."""
    return one_blas_thread(rows * columns >= DIVIDED_FROM and float(rows) * columns**2 < SHARED_FROM)


def quiet_product(matrix: Array, columns: NDArray[Any]) -> Array:
    """Product of a long (n, p) matrix and a (p,) or narrow (p, c) array, for which no BLAS thread is woken."""
    with quiet_blas(*matrix.shape):
        return np.asarray(matrix @ columns)

"""One BLAS thread for matrices of moderate size.

BLAS divides products of matrices of a hundred columns already, and serves one caller at a time: threads of ours that
call it then wait for each other, and on a busy machine each call waits for all of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["blas_threads", "libraries", "one_blas_thread"]

_lock = threading.Lock()
_users = 0
_limits: Any = None


@cache
def libraries() -> Any:
    """The BLAS libraries that are loaded; whoever loads another clears this cache."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas_threads() -> int:
    """Threads that BLAS may use: what the environment, threadpoolctl and `one_blas_thread` allow."""
    return min((int(library.num_threads) for library in libraries().select(user_api="blas").lib_controllers), default=1)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS uses one thread in this block.

    May be entered by several threads: the number of before comes back with the last to leave.
    """
    global _users, _limits
    with _lock:
        _users += 1
        if _users == 1:
            _limits = libraries().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limits.restore_original_limits()

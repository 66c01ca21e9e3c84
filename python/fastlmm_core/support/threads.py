"""Tasks on several threads, the calling one among them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

from ..errors import LMMError

__all__ = [
    "MOST_THREADS",
    "in_threads",
    "map_in_threads",
    "processors",
    "thread_count",
    "threads_for",
    "threads_in_use",
]

T = TypeVar("T")

MOST_THREADS = 1024
"""More are a mistake: their stacks alone would take the memory."""

LARGE = 2**16
"""Rows from which passes over them are worth a second thread."""

_NOTHING = nullcontext()

_in_use: ContextVar[int] = ContextVar("threads in use", default=0)  # 0: nobody has said


def processors() -> int:
    """Processors that this process may use, which are fewer than the machine has under taskset, cgroups or a queue."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(n_jobs: int | None) -> int:
    """Threads that `n_jobs` asks for: None or -1 is one per processor that this process may use.

    Raises
    ------
    LMMError
        For anything but -1 and positive integers of moderate size.
    """
    if n_jobs is None:
        return processors()
    if not isinstance(n_jobs, (int, np.integer)) or isinstance(n_jobs, bool):
        raise LMMError(f"n_jobs={n_jobs!r} must be an integer: a number of threads, or -1 for one per processor")
    if n_jobs == -1:
        return processors()
    if not 1 <= n_jobs <= MOST_THREADS:
        raise LMMError(f"n_jobs={n_jobs} must be -1 or between 1 and {MOST_THREADS}; by default one per processor")
    return int(n_jobs)


def threads_in_use(unsaid: int = 1) -> int:
    """Threads that passes over rows or groups, or the work on a matrix, may take here; `unsaid` where nobody said."""
    return _in_use.get() or unsaid


def threads_for(n_jobs: int | None, n: float) -> AbstractContextManager[None]:
    """A context in which passes over n rows, and over their groups, take so many threads.

    Parameters
    ----------
    n_jobs : int or None
        None: those of the context around it, where there is one, and otherwise one per processor.
    n : float
        One thread is enough for few rows.

    Raises
    ------
    LMMError
        As `thread_count`.
    """
    if n_jobs is None and (n < LARGE or _in_use.get()):
        return _NOTHING
    return _using(thread_count(n_jobs))


@contextmanager
def _using(jobs: int) -> Iterator[None]:
    before = _in_use.set(jobs)
    try:
        yield
    finally:
        _in_use.reset(before)


def in_threads(
    run: Callable[..., int], tasks: Iterator[tuple[Any, ...]], jobs: int, report: Callable[[int], Any] | None = None
) -> None:
    """Run `run(*task)` for all tasks, each of which has one thread.

    The first error of any thread is raised once the tasks under way have ended; so is an interrupt.

    Parameters
    ----------
    run : callable
        Returns the amount of work done.
    tasks : iterator
        Asked for one task at a time, by any of the threads.
    jobs : int
        Threads; fewer where the system starts no more.
    report : callable, optional
        Told the amount of work done after each task, by one thread at a time.
    """
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        before = _in_use.set(1 if jobs > 1 else _in_use.get())
        try:
            while not errors:
                with lock:
                    task = next(tasks, None)
                if task is None:
                    return
                done = run(*task)
                if report is not None:
                    with lock:
                        report(done)
        except BaseException as error:
            errors.append(error)
        finally:
            _in_use.reset(before)

    others: list[threading.Thread] = []
    for _ in range(jobs - 1):
        thread = threading.Thread(target=work)
        try:
            thread.start()
        except RuntimeError:
            # a limit on threads or memory: those that run do the work
            break
        others.append(thread)
    try:
        work()
        for thread in others:
            thread.join()
    except BaseException as error:
        # an interrupt while this thread waited
        errors.append(error)
        for thread in others:
            thread.join()
    if errors:
        raise errors[0]


def map_in_threads(
    run: Callable[..., T], tasks: Iterable[tuple[Any, ...]], jobs: int, report: Callable[[int], Any] | None = None
) -> list[T]:
    """What `run(*task)` returns for each task, in their order; `jobs` and `report` as for `in_threads`."""
    found: dict[int, T] = {}

    def one(place: int, task: tuple[Any, ...]) -> int:
        found[place] = run(*task)
        return 1

    in_threads(one, enumerate(tasks), jobs, report)
    return [found[place] for place in range(len(found))]

"""Tasks on several threads, the calling one among them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["in_threads", "map_in_threads"]

T = TypeVar("T")


def in_threads(
    run: Callable[..., int], tasks: Iterator[tuple[Any, ...]], jobs: int, report: Callable[[int], Any] | None = None
) -> None:
    """Run `run(*task)` for all tasks.

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

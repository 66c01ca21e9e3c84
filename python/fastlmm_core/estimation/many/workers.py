"""Responses in chunks of Dask: each is fitted by the worker that has it, and only the estimates come back.

A response has the same estimates, to the last bit, whatever is fitted beside it, so that chunks, workers and tasks that
were done twice change nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from ...errors import LMMError
from ...support.progress import progress_bar
from ...support.types import Array
from ...tables.stored import StoredResponses, in_chunks, stored
from .batch_fit import BatchFit
from .parts import FIELDS, part_of
from .pieces import fit_many
from .progress import Sink, begun, unfinished

__all__ = ["fit_by_workers", "worker_client"]

B = TypeVar("B", bound=BatchFit)


def worker_client(Y: Any, client: Any) -> Any:
    """The client whose workers fit an array of Dask: that given, or the current one; None where there is none.

    Raises
    ------
    LMMError
        For a client, and responses that no worker has.
    """
    if in_chunks(Y) is None:
        if client is not None:
            raise LMMError("client is for an array of Dask: give one as Y, or leave it out")
        return None
    if client is not None or "distributed" not in sys.modules:
        return client
    try:
        return import_module("distributed").default_client()
    except ValueError:
        return None


def _fit_chunk(empty: Callable[[int, Any], BatchFit], shape: StoredResponses, part: Any, n_jobs: int) -> dict[str, Any]:
    """The arrays of the batch of one chunk."""
    found = fit_many(empty, shape.lines(part), n_jobs, progress=False)
    return {name: getattr(found, name) for name in (*FIELDS, "seals")}


def _as_they_end(client: Any, tasks: dict[int, Any]) -> Iterator[tuple[int, dict[str, Array]]]:
    """What tasks return, each when it has ended; those that nobody waits for any more are called off."""
    futures = dict(zip(tasks, client.compute(list(tasks.values())), strict=True))
    place = {future.key: at for at, future in futures.items()}
    try:
        for future in import_module("distributed").as_completed(list(futures.values()), loop=client.loop):
            at = place[future.key]
            yield at, future.result()
            del futures[at]
    finally:
        client.cancel(list(futures.values()))


def fit_by_workers(
    empty: Callable[[int, Any], B],
    Y: Any,
    client: Any,
    n_jobs: int | None,
    progress: bool | None,
    out: Any,
    resume: BatchFit | None,
) -> B:
    """`fit_many` of an array of Dask on its workers.

    Parameters
    ----------
    empty : callable
        Makes an empty batch for so many responses; it is sent to the workers with the model.
    Y : array of Dask, or of xarray that holds one
    client : distributed.Client
    n_jobs : int or None
        Threads of each task, by default one.
    progress, out, resume
        As of `LinearMixedModel.fit_many`.

    Raises
    ------
    LMMError
        As `fit_many`.
    """
    delayed = import_module("dask").delayed
    none = empty(0, None)
    found = stored(Y, none.model.design.caller_rows)
    assert found is not None and found.delayed is not None
    count = len(found)
    batch = empty(count, found)
    batch.labels, batch.seals = found.labels, np.zeros((count, 2), dtype=np.uint64)
    reached = np.zeros(count, dtype=bool) if resume is None else begun(batch, resume)
    sink = None if out is None else Sink(out, none, count)
    sent, shape, fit = delayed(empty, traverse=False), delayed(found.shape_of(), traverse=False), delayed(_fit_chunk)
    tasks, lengths, begin = {}, {}, 0
    for length, part in found.delayed:
        if not reached[begin : begin + length].all():
            tasks[begin], lengths[begin] = fit(sent, shape, part, n_jobs or 1), length
        begin += length
    bar = progress_bar(progress, count)
    try:
        for at, values in _as_they_end(client, tasks):
            own = slice(at, at + lengths[at])
            for name, value in values.items():
                getattr(batch, name)[own] = 0 if value is None else value  # no seals of what nobody can change
            if sink is not None:
                sink.write(part_of(batch, np.arange(at, at + lengths[at])), at)
            reached[own] = True
            if bar is not None:
                bar.update(lengths[at])
    except BaseException as error:
        error.batch = unfinished(batch, reached)  # type: ignore[attr-defined]
        raise
    finally:
        if bar is not None:
            bar.close()
    return batch

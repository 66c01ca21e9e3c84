"""Responses that are stored elsewhere: files, chunks, sparse matrices, arrays with names; read a few at a time.

Nothing here knows the libraries: what is needed of an array is its shape, its dtype and slices along its first axis, of
a sparse matrix `toarray`, of one with names `dims` and `coords`, of annotated data `X` and `var_names`.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.types import Array
from .rows import CallerRows

__all__ = ["Compressed", "StoredResponses", "in_chunks", "stored"]


GAP = 8
"""Responses that are read in vain rather than in two pieces."""


def stored(values: Any, rows: CallerRows, name: str = "Y") -> StoredResponses | None:
    """Responses, or what is shaped like them, in an array that is not numpy's; None for anything else."""
    if isinstance(values, np.ndarray):
        return None
    if hasattr(values, "X") and hasattr(values, "var_names"):
        return StoredResponses(values.X, rows, np.asarray(values.var_names), True, name)
    if len(getattr(values, "shape", ())) != 2 or not hasattr(values, "dtype") or not hasattr(values, "__getitem__"):
        return None
    labels, across = None, False
    if hasattr(values, "dims") and hasattr(values, "coords"):
        labels, across = _named(values, rows)
    if hasattr(values, "toarray") and hasattr(values, "tocsr"):
        values = values.tocsr()
    return StoredResponses(values, rows, labels, across, name)


def in_chunks(values: Any) -> Any:
    """The array of Dask that this is, or that an array with names holds; None for anything else."""
    inner = getattr(values, "data", None) if hasattr(values, "dims") else values
    return inner if hasattr(inner, "to_delayed") and hasattr(inner, "rechunk") else None


def _named(values: Any, rows: CallerRows) -> tuple[NDArray[Any] | None, bool]:
    """Labels of the responses, and whether these are the second dimension, of an array with dims and coords."""
    n = len(rows.positions)
    # rows are observations only where nothing else fits: a response per row is what arrays are
    across = values.shape[1] != n and values.shape[0] == n
    name = values.dims[1 if across else 0]
    return (np.asarray(values.coords[name]) if name in values.coords else None), across


class Compressed(NamedTuple):
    """Sparse responses by their elements.

    Attributes
    ----------
    start : (count + 1,) int array
        First element of each response.
    place : (n_elements,) int array
        Observation of each element, increasing within a response.
    values : (n_elements,) array
    """

    start: NDArray[Any]
    place: NDArray[Any]
    values: Array


class StoredResponses:
    """Responses as rows of an array (n_responses, n), which is never made as a whole.

    Parameters
    ----------
    data : array-like
    rows : CallerRows
        The rows that are wanted: the observations are these, or all rows of the data.
    labels : (n_responses,) array or None
    across : bool
        Whether responses are the columns of the array.
    name : str
        Of the argument.

    Raises
    ------
    LMMError
        For another shape, or values that are not numbers.
    """

    ndim = 2

    def __init__(self, data: Any, rows: CallerRows, labels: NDArray[Any] | None, across: bool, name: str = "Y") -> None:
        self._data, self._across = data, across
        if any(size != size for size in data.shape):
            raise LMMError(f"{name} has chunks of unknown length; call its compute_chunk_sizes() first")
        if across and hasattr(data, "tocsc"):
            self._data = data.tocsc()
        count, length = data.shape[::-1] if across else data.shape
        n = len(rows.positions)
        if length == n:
            self._rows = None
        elif rows.used is not None and length == rows.count:
            self._rows = rows.used
        else:
            shape = f"({n}, n_responses)" if across else f"(n_responses, {n})"
            raise LMMError(f"{name} must have the shape {shape}, not {tuple(data.shape)}; transpose it if needed")
        if np.dtype(data.dtype).kind not in "fiub":
            raise LMMError(f"{name} must hold numbers, not {data.dtype}")
        self.labels = None
        if labels is not None:
            self.labels = np.empty(count, dtype=object)
            self.labels[:] = list(labels)
        self.shape = (int(count), n)
        self.dtype = np.dtype(np.float64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> Array:
        """Responses by position, in float64: one (n,), or several (k, n)."""
        if isinstance(at, (int, np.integer)):
            one: Array = self[[int(at)]][0]
            return one
        if isinstance(at, slice):
            begin, stop, step = at.indices(self.shape[0])
            if step == 1:
                return self._between(begin, max(begin, stop))
        chosen = np.arange(self.shape[0])[at]
        # stores read slices, in order; some not at all what numpy calls an index
        wanted, places = np.unique(chosen, return_inverse=True)
        cuts = np.flatnonzero(np.diff(wanted) > GAP) + 1
        parts = [
            self._between(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in np.split(wanted, cuts) if len(run)
        ]
        return np.concatenate(parts)[places.reshape(-1)] if parts else np.empty((0, self.shape[1]))

    @property
    def sparse(self) -> bool:
        """Whether the array is a sparse matrix of scipy."""
        return hasattr(self._data, "tocsr") and hasattr(self._data, "toarray")

    def compressed(self, chosen: NDArray[np.intp]) -> Compressed:
        """Some responses of a sparse matrix by their elements, in float64; neighbours are not copied."""
        data = self._data
        if len(chosen) and self._rows is None and data.dtype == np.float64:
            first, last = int(chosen[0]), int(chosen[0]) + len(chosen)
            stored = getattr(data, "format", "") == ("csc" if self._across else "csr") and data.has_canonical_format
            if stored and np.array_equal(chosen, np.arange(first, last)):
                begin, end = int(data.indptr[first]), int(data.indptr[last])
                start = data.indptr[first : last + 1] - data.indptr[first]
                return Compressed(start, data.indices[begin:end], data.data[begin:end])
        part = data[:, chosen].T if self._across else data[chosen]
        part = part.tocsr().astype(np.float64)
        if self._rows is not None:
            part = part[:, self._rows]
        part.sum_duplicates()
        return Compressed(part.indptr, part.indices, part.data)

    @property
    def _in_chunks(self) -> Any:
        """The array of Dask that holds the responses, None where another kind does."""
        return in_chunks(self._data)

    @property
    def delayed(self) -> list[tuple[int, Any]] | None:
        """Of an array of Dask: the number of responses in each chunk, and their values (see `lines`), not computed."""
        inner = self._in_chunks
        if inner is None:
            return None
        axis = 1 if self._across else 0
        whole = inner.rechunk({1 - axis: -1})
        return list(zip(map(int, whole.chunks[axis]), whole.to_delayed().reshape(-1).tolist(), strict=True))

    def pieces(self, size: int) -> Iterator[Any]:
        """The responses in pieces that are read at once: of an array of Dask its chunks, or `size` of one, else all."""
        inner = self._in_chunks
        if inner is None:
            yield self
            return
        begin = 0
        for length in inner.chunks[1 if self._across else 0]:
            stop = begin + int(length)
            for first in range(begin, stop, size):
                yield self._between(first, min(first + size, stop))
            begin = stop

    def lines(self, part: Any) -> Array:
        """What was read of some responses as (k, n), in float64."""
        part = part.toarray() if hasattr(part, "toarray") else part
        block = np.asarray(part, dtype=np.float64)
        block = block.T if self._across else block
        return np.ascontiguousarray(block if self._rows is None else block[:, self._rows])

    def shape_of(self) -> StoredResponses:
        """This without its data, to be sent with the values of a chunk."""
        out = copy(self)
        out._data = out.labels = None
        return out

    def _between(self, begin: int, stop: int) -> Array:
        """Responses from one position to another."""
        return self.lines(self._data[:, begin:stop] if self._across else self._data[begin:stop])

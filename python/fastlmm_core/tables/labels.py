"""Labels to codes, and back.

Labels become codes 0..m-1 in the order of the sorted labels. Integers of a modest range need no sorting; text is hashed
by a kernel, everything else by pandas, and only the distinct labels are sorted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..kernels import code_range, object_codes, text_codes

if TYPE_CHECKING:
    from ..kernels.reading import TextTable

__all__ = [
    "arrow_text_codes",
    "arrow_text_slots",
    "in_order",
    "integer_codes",
    "label_array",
    "label_codes",
    "modest_range",
]

_FEW = 10_000
"""So many labels are sorted in less time than it takes to import pandas."""

_SMALL = 5_000
"""Of so many codes a plain loop finds the range sooner than two vectorised reductions of numpy."""


def modest_range(values: NDArray[Any]) -> tuple[int, int] | None:
    """Smallest and largest of integers, where a table of all between them beats sorting."""
    plain = values.dtype == np.int64 or (values.dtype == np.int32 and values.size <= _SMALL)
    low, high = code_range(values) if plain else (int(values.min()), int(values.max()))
    return (low, high) if high - low < 4 * values.size + 1000 and high < 2**62 else None


def integer_codes(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Codes 0..m-1 of integers and the m distinct values in increasing order.

    A table of the range replaces sorting wherever the range is modest; the codes are always a fresh array.
    """
    if len(values) == 0:
        return np.empty(0, dtype=np.intp), values[:0]
    bounds = modest_range(values)
    if bounds is None:
        return label_codes(values, "The grouping column")
    low, high = bounds
    shifted = values.astype(np.intp)
    if low:
        shifted -= low
    present = np.zeros(high - low + 1, dtype=bool)
    present[shifted] = True
    if present.all():
        return shifted, np.arange(low, high + 1).astype(values.dtype)
    used = np.flatnonzero(present)
    rank = np.empty(len(present), dtype=np.intp)
    rank[used] = np.arange(len(used))
    return rank.take(shifted), (used + low).astype(values.dtype)


def label_codes(values: Any, title: str) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Codes (-1 where missing) and sorted labels by hashing: only the distinct values are sorted.

    Parameters
    ----------
    values : array or series
    title : str
        What a message calls the values.

    Raises
    ------
    LMMError
        If the values cannot be hashed or not be sorted.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "US" and values.size <= _FEW:
        found, codes = np.unique(values, return_inverse=True)
        return codes, label_array(found.tolist())
    if isinstance(values, np.ndarray) and values.dtype.kind == "O" and values.flags.c_contiguous:
        text = object_codes(values)
        if text is not None:
            return text
    import pandas as pd

    try:
        codes, uniques = pd.factorize(values)
    except TypeError as error:
        raise LMMError(f"{title} holds values that cannot serve as labels: {error}. Convert them to text.") from error
    labels = np.asarray(uniques)
    return in_order(codes, label_array(labels.tolist()) if labels.dtype.kind in "OUST" else labels, title)


def arrow_text_codes(text: Any) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """`label_codes` of an array of Arrow's text, not chunked."""
    return text_codes(*_text_of(text))


def arrow_text_slots(text: Any, table: TextTable, rows: NDArray[Any] | None) -> NDArray[np.int64]:
    """The slot in a table of each of some rows (None: all) of an array of Arrow's text, not chunked.

    Of text with a dictionary only those entries get slots that some of the rows have.
    """
    if hasattr(text, "dictionary"):
        codes = text.indices.fill_null(0).to_numpy(zero_copy_only=False)
        codes = codes if rows is None else codes[rows]
        data, offsets, _ = _text_of(text.dictionary)
        absent = np.ones(len(text.dictionary), dtype=bool)
        absent[codes] = False
        return np.asarray(table.slots(data, offsets, absent)[codes])
    data, offsets, missing = _text_of(text)
    if rows is None:
        return table.slots(data, offsets, missing)
    left_out = np.ones(len(text), dtype=bool)
    left_out[rows] = False
    return np.asarray(table.slots(data, offsets, left_out)[rows])


def _text_of(text: Any) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_] | None]:
    """UTF-8, where each row begins, and which are missing, of an array of Arrow's text."""
    _, starts, data = text.buffers()
    wide = str(text.type) == "large_string"
    offsets = np.frombuffer(starts, np.int64 if wide else np.int32)[text.offset : text.offset + len(text) + 1]
    missing = text.is_null().to_numpy(zero_copy_only=False) if text.null_count else None
    return np.frombuffer(data or b"", np.uint8), offsets, missing


def label_array(labels: list[Any]) -> NDArray[Any]:
    """Array of labels: numbers of one kind as such, everything else as Python objects."""
    if labels and all(type(label) is type(labels[0]) for label in labels) and isinstance(labels[0], (bool, int, float)):
        return np.asarray(labels)
    array = np.empty(len(labels), dtype=object)
    array[:] = labels
    return array


def in_order(codes: NDArray[Any], labels: NDArray[Any], title: str) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Sort the labels and renumber the codes; code -1 stays."""
    n = len(labels)
    try:
        listed = labels.tolist() if labels.dtype.kind == "O" else None
        order = np.argsort(labels) if listed is None else np.asarray(sorted(range(n), key=listed.__getitem__), np.intp)
    except TypeError as error:
        raise LMMError(f"{title} mixes labels of different types ({error}); convert all of them to text.") from error
    if np.array_equal(order, np.arange(n)):
        return codes.astype(np.intp, copy=False), labels
    rank = np.empty(n + 1, dtype=np.intp)
    rank[order] = np.arange(n)
    rank[n] = -1  # where code -1 looks
    return rank.take(codes, mode="wrap"), labels[order]

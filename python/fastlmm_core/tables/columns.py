"""Columns of the caller's table as numpy arrays, whichever library the table comes from.

A `Table` hands out `Column` objects one by one, so that only the columns in use are converted. A `Column` can be read
as numbers, as group labels (integer codes and the sorted distinct labels) or as what formulaic takes. Nothing here
knows of formulas. pandas, polars and pyarrow are looked up, not imported, unless a conversion needs them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import exact_floats
from ..support.numerals import Numerals, first_other, numerals
from .alignment import index_of, shared_index
from .labels import arrow_text_slots, integer_codes, label_codes
from .lazy import collected
from .storage import (
    arrow_nulls,
    as_numbers,
    declared_levels,
    encode_labels,
    from_sequence,
    has_categories,
    is_arrow_text,
    is_encoded,
    is_instance,
    is_text,
    library_of,
    numbers_from_objects,
    whole,
    without_missing_entries,
)

if TYPE_CHECKING:
    from ..kernels.reading import TextTable

__all__ = ["Column", "Table", "first_rows", "native_frame"]

Array = NDArray[Any]

_ROWS_SHOWN = 5

_SAFE = 2**12
"""Integers up to here have fifth powers, and sums of these, that int64 holds."""


def first_rows(rows: Array) -> str:
    """Name the first of some row numbers for a message, e.g. ``rows 3, 7 and 12 more (counting from 0)``."""
    shown = ", ".join(str(row) for row in rows[:_ROWS_SHOWN])
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more} (counting from 0)"


class Table:
    """The caller's table, read one column at a time.

    Parameters
    ----------
    data : table
        Of pandas, polars or pyarrow, a mapping of one-dimensional arrays, or what `lazy` reads.
    argument : str
        Name of the caller's argument, for messages.
    declared : bool
        Whether the levels that a categorical column declares count, though no row may have them.
    """

    def __init__(self, data: Any, argument: str = "data", declared: bool = False) -> None:
        self.declared = declared
        data = collected(data)
        self.argument = argument
        self._data = data
        self._columns: dict[str, Column] = {}
        self._n_rows: int | None = None
        self._names: Any = data  # whatever answers `name in` and iterates over the names
        self._labels: tuple[Any, str] | None = None
        if isinstance(data, Mapping):
            self.library = "dict"
        elif is_instance(data, "pandas", "DataFrame"):
            self.library, self._names, self._n_rows = "pandas", data.columns, len(data)
        elif is_instance(data, "polars", "DataFrame"):
            self.library, self._names, self._n_rows = "polars", data.columns, data.height
        elif is_instance(data, "pyarrow", "Table", "RecordBatch"):
            self.library, self._names, self._n_rows = "pyarrow", data.schema.names, data.num_rows
        else:
            from ..support.words import TABLES

            kind = type(data).__name__
            raise LMMError(
                f"`{argument}` must be a pandas or polars DataFrame, a pyarrow Table or a dict of one-dimensional "
                f"arrays, not {kind!r}{'; ' + TABLES[kind] if kind in TABLES else ''}."
            )

    @property
    def data(self) -> Any:
        """The caller's table itself."""
        return self._data

    @classmethod
    def of(cls, data: Any, argument: str = "data") -> Table:
        """`data` itself where it is one already."""
        return data if isinstance(data, Table) else cls(data, argument)

    @property
    def index(self) -> Any:
        """Labels of the rows as an index of pandas: that of a DataFrame, or of Series read from a dict; else None."""
        if self.library == "pandas":
            return self._data.index
        return None if self._labels is None else self._labels[0]

    @property
    def n_rows(self) -> int:
        """Number of rows; for a dict the length of the first column read, or of the first one there is."""
        if self._n_rows is None:
            first = next(iter(self._names), None)
            if first is None:
                raise LMMError(f"`{self.argument}` has no columns; give a dict of one-dimensional arrays.")
            self.column(first)
        assert self._n_rows is not None
        return self._n_rows

    @property
    def names(self) -> list[str]:
        """The column names."""
        return [str(name) for name in self._names]

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def column(self, name: str, where: str = "") -> Column:
        """The column `name`, read once; `where` tells in a message what it is used for."""
        known = self._columns.get(name)
        if known is not None:
            return known
        if name not in self:
            close = difflib.get_close_matches(name, self.names, n=3, cutoff=0.5) or [
                other for other in self.names if other.lower() == name.lower()
            ]
            shown = ", ".join(map(repr, self.names[:20])) + (", ..." if len(self.names) > 20 else "")
            remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"The columns are: {shown}."
            used = f", which {where} uses" if where else ""
            raise LMMError(f"`{self.argument}` has no column {name!r}{used}. {remedy}")
        raw = None if self.library == "pyarrow" and self.names.count(name) > 1 else self._data[name]
        if raw is None or (self.library == "pandas" and raw.ndim > 1):
            raise LMMError(f"`{self.argument}` has more than one column {name!r}; rename or drop all but one.")
        column = Column(f"Column {name!r} of `{self.argument}`", raw)
        if self.library == "dict" and (index := index_of(raw)) is not None:
            if self._labels is None:
                self._labels = (index, name)
            first, before = self._labels
            shared_index([(f"column {before!r} of `{self.argument}`", first), (column.title, index)])
        if self._n_rows is None:
            self._n_rows = len(column)
        elif len(column) != self._n_rows:
            raise LMMError(
                f"{column.title} has {len(column)} values where other columns have {self._n_rows}; "
                "all columns must be of one length."
            )
        column.declared = self.declared
        self._columns[name] = column
        return column


class Column:
    """One column: a numpy array, or a series of pandas, polars or pyarrow.

    Parameters
    ----------
    title : str
        What a message calls the column, capitalised.
    raw : array-like
        The values, as the caller's library stores them.

    Attributes
    ----------
    number : ndarray or None
        The values of a numeric or boolean column (missing integers filled with 0), None for any other type.
    """

    def __init__(self, title: str, raw: Any) -> None:
        self.title = title
        self.declared = False
        if isinstance(raw, np.ma.MaskedArray):
            raw = np.asarray(raw.tolist(), dtype=object)  # None where masked
        elif not isinstance(raw, np.ndarray) and library_of(raw) is None:
            raw = from_sequence(raw, title)
        if library_of(raw) == "pyarrow" and is_encoded(raw):
            raw = without_missing_entries(raw)
        if getattr(raw, "ndim", 1) != 1:
            raise LMMError(f"{title} has {raw.ndim} dimensions; give a one-dimensional array.")
        self.raw: Any = raw
        if getattr(getattr(raw, "dtype", None), "kind", "") == "c":
            raise LMMError(f"{title} holds complex numbers; give its real part, imaginary part or modulus.")
        numbers = as_numbers(raw)
        self.number: Array | None = None if numbers is None else numbers[0]
        self._null: Array | None = None if numbers is None else numbers[1]
        self._encoded: tuple[Array, Array] | None = None

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def dtype(self) -> str:
        """Name of the caller's dtype, for messages."""
        return str(getattr(self.raw, "dtype", getattr(self.raw, "type", "object")))

    @property
    def is_category(self) -> bool:
        """Whether the column declares its categories and their order."""
        return has_categories(self.raw)

    def settle(self) -> Column:
        """Take an object column whose values are all numbers for what it is: a numeric column."""
        if self.number is None and self.dtype == "object":
            numbers = numbers_from_objects(self.raw, self.title)
            if numbers is not None:
                self.number, self._null = numbers
        return self

    def missing(self) -> Array | None:
        """Mask of the missing values (None when there are none); infinite values are refused here."""
        null, values = self._null, self.number
        if values is None:
            if is_arrow_text(self.raw):
                return arrow_nulls(self.raw)
            codes = self._encode()[0]
            return codes < 0 if len(codes) and codes.min() < 0 else None
        if values.dtype.kind == "f":
            with np.errstate(all="ignore"):
                total = values.sum(dtype=np.float64)
            # A sum that is finite proves every value finite; one that is not may only have overflowed.
            if not np.isfinite(total):
                nan = np.isnan(values)
                infinite = np.isinf(values)
                if infinite.any():
                    raise LMMError(
                        f"{self.title} is infinite at {first_rows(np.flatnonzero(infinite))}; correct these values or "
                        "mark them as missing (NaN)."
                    )
                if nan.any():
                    null = nan if null is None else nan | null
        return null

    def codes(self, rows: Array | None) -> tuple[Array, Array]:
        """Codes of the group labels in `rows` (None: all) and the sorted labels in use; no row may be missing."""
        if self.number is not None:
            values = self.number if rows is None else self.number[rows]
            if values.dtype.kind == "b":
                codes, labels = integer_codes(values.view(np.int8))
                return codes, labels.astype(bool)
            if values.dtype.kind != "f":
                return integer_codes(values)
            return label_codes(values, self.title)
        codes, labels = self._encode()
        if rows is None and not self.is_category:
            return codes, labels
        codes, used = integer_codes(codes if rows is None else codes[rows])
        return codes, labels[used]

    def label_codes(self, rows: Array | None) -> tuple[Array, Array]:
        """Codes of the labels in `rows` (None: all) and the labels, in any order; text of pyarrow is not sorted."""
        if self._encoded is not None or not is_arrow_text(self.raw):
            return self.codes(rows)
        known = is_encoded(self.raw)
        encoded = whole(self.raw if known else self.raw.dictionary_encode())
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        labels = encoded.dictionary.to_numpy(zero_copy_only=False)
        if rows is None and not known:
            return codes, labels
        # a dictionary that was there before may hold what no row has
        codes, used = integer_codes(codes if rows is None else codes[rows])
        return codes, labels[used]

    def text_slots(self, table: TextTable, rows: Array | None) -> NDArray[np.int64] | None:
        """The slots in a table of the labels in `rows` (None: all), none missing; None for all but text of pyarrow."""
        if self._encoded is not None or not is_arrow_text(self.raw):
            return None
        return arrow_text_slots(whole(self.raw), table, rows)

    def numerals(self) -> Numerals | None:
        """What the values of a column of text are, where nearly all of them are numbers; None for all other columns."""
        if self.number is not None or not is_text(self.raw):
            return None
        try:
            codes, labels = self._encode()
        except LMMError:  # numbers and text in one column of objects, which cannot be sorted
            import pandas as pd

            try:
                codes, labels = pd.factorize(np.asarray(self.raw, dtype=object))
            except TypeError:  # no labels at all
                return None
        return numerals(codes, labels)

    def other(self) -> str:
        """A clause on the first value that is no number, with its row."""
        return first_other(self.raw.to_pylist() if hasattr(self.raw, "to_pylist") else self.raw)

    def unused(self, rows: Array | None) -> tuple[Any, ...]:
        """The levels that the column declares, or its encoding holds, but that no row of `rows` (None: all) has."""
        declared = declared_levels(self.raw)
        if declared is None or self.declared:
            return ()
        used = set(self.codes(rows)[1].tolist())
        return tuple(level for level in declared if level not in used)

    def categories(self) -> tuple[Array, Array]:
        """Codes (-1 where missing) and all declared categories, whether or not they occur."""
        return self._encode()

    def for_formulaic(self, rows: Array | None, as_text: bool, as_labels: bool = False, as_numbers: bool = True) -> Any:
        """The values in `rows` in a form that formulaic takes: numbers, dates, pandas categories or objects.

        Text goes as categories, which are coded already, unless `as_text` tells that an expression computes with it.
        `as_labels` and `as_numbers` tell what the formula takes numbers for.
        """
        if self.number is not None:
            return self._computable(self.number if rows is None else self.number[rows], as_labels, as_numbers)
        raw = self.raw
        if isinstance(raw, np.ndarray) and raw.dtype.kind in "Mm":
            return raw if rows is None else raw[rows]
        if library_of(raw) == "pandas" and getattr(raw.dtype, "kind", "O") in "Mm":
            return raw.array if rows is None else raw.array[rows]
        codes, labels = self.codes(rows)
        if self.declared and self.is_category:
            every, labels = self.categories()
            codes = every if rows is None else every[rows]
        if not self.is_category and (as_text or labels.dtype.kind != "O"):
            return labels[codes]
        import pandas as pd

        return pd.Categorical.from_codes(codes, categories=labels)  # type: ignore[call-overload]

    def _computable(self, values: Array, as_labels: bool, as_numbers: bool) -> Array:
        """Numbers of which no sum or power wraps: float64, unless they are labels or truth values too."""
        if as_labels and values.dtype.kind == "b":
            return values
        if as_labels and values.dtype.kind in "iu" and len(values):
            low, high = int(values.min()), int(values.max())
            if high < 2**63 and (not as_numbers or max(-low, high) <= _SAFE):
                return values.astype(np.int64)
            if not as_numbers:
                return values
        return exact_floats(values, self.title)

    def _encode(self) -> tuple[Array, Array]:
        """Codes (-1 where missing) and sorted labels of a column that is not numeric."""
        if self._encoded is None:
            self._encoded = encode_labels(self.raw, self.title)
        return self._encoded


def native_frame(library: str, columns: Mapping[str, Any], index: Any = None) -> Any:
    """A table of `library` ("pandas", "polars", "pyarrow" or "dict") with the given columns; pandas with an index."""
    if library == "dict":
        return {name: np.asarray(values) for name, values in columns.items()}
    if library == "pyarrow":
        return importlib.import_module("pyarrow").table(dict(columns))
    if library == "pandas":
        return importlib.import_module("pandas").DataFrame(dict(columns), index=index)
    return importlib.import_module(library).DataFrame(dict(columns))

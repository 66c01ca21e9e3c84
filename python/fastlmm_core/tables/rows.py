"""The rows of the caller's table: which of them a result is about, and what is given for each of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import plain_array
from .alignment import aligned, index_of
from .columns import Column, native_frame

__all__ = ["CallerRows", "FitLabels", "limits_table", "named_rows", "rows_of_table", "with_columns"]

Array = NDArray[Any]


def named_rows(library: str, name: str, labels: Array | None, columns: Mapping[str, Any]) -> Any:
    """A table of results with a label for each row: pandas' index, or else the first column, called `name`."""
    if labels is None or library == "pandas":
        return native_frame(library, columns, None if labels is None else list(labels))
    return native_frame(library, {name: list(labels), **columns})


class FitLabels(NamedTuple):
    """What many fits are called in tables of them.

    Attributes
    ----------
    library : str
        Of the tables.
    labels : (n,) array or None
    name : str
        What a fit is of.
    """

    library: str
    labels: Array | None
    name: str = "response"

    def known(self, n: int) -> Array:
        """Labels, or positions, of n fits."""
        return np.arange(n) if self.labels is None else self.labels

    def table(self, columns: Mapping[str, Any]) -> Any:
        """A table with a row for each fit."""
        return named_rows(self.library, self.name, self.labels, columns)


def rows_of_table(data: Any, at: NDArray[np.intp] | None) -> Any:
    """Some rows of a table, in its own library; None for all of them."""
    if hasattr(data, "to_native"):
        data = data.to_native()
    if isinstance(data, Mapping):
        return {
            name: Column(name, values).raw if at is None else Column(name, values).raw[at]
            for name, values in data.items()
        }
    if at is None:
        return data
    if hasattr(data, "iloc"):
        return data.iloc[at]
    return data.take(at) if hasattr(data, "append_column") else data[at]


def with_columns(data: Any, columns: Mapping[str, Any]) -> Any:
    """A table of pandas, polars or pyarrow, or a dict of arrays, with more columns."""
    if isinstance(data, Mapping):
        return {**data, **columns}
    if hasattr(data, "iloc"):
        return data.assign(**columns)
    if hasattr(data, "append_column"):
        for name, values in columns.items():
            data = data.append_column(name, [values])
        return data
    series = importlib.import_module("polars").Series
    return data.with_columns(
        [series(name, list(values) if values.dtype.kind == "O" else values) for name, values in columns.items()]
    )


def limits_table(library: str | None, names: Sequence[str], limits: Array) -> Any:
    """Confidence limits (k, 2) by name: a frame of `library` with columns conf_low and conf_high.

    pandas has the names as index, other libraries as a column ``term``; None, for models from arrays, gives the array.
    """
    if library is None:
        return limits
    return named_rows(library, "term", np.array(names), {"conf_low": limits[:, 0], "conf_high": limits[:, 1]})


@dataclass(frozen=True, eq=False)
class CallerRows:
    """The rows of a table that a result is about.

    Attributes
    ----------
    library : str
        "pandas", "polars", "pyarrow" or "dict".
    index : pandas.Index or None
        Labels of all rows of the table, where it has any.
    used : (n,) int array or None
        Positions of the rows in the table; None for all of them.
    count : int
        Rows of the table.
    padded : bool
        Whether results have a value for every row of the table, NaN (or None) for those that were not used.
    """

    library: str
    index: Any
    used: NDArray[np.intp] | None
    count: int
    padded: bool = False

    @property
    def positions(self) -> NDArray[np.intp]:
        """Positions in the table (n,)."""
        return np.arange(self.count) if self.used is None else self.used.copy()

    @cached_property
    def used_index(self) -> Any:
        """Labels of the rows as an index of pandas, None where the table has none."""
        return self.index if self.index is None or self.used is None else self.index.take(self.used)

    @property
    def labels(self) -> Array:
        """Labels of the rows, or their positions where the table has no labels (n,)."""
        return self.positions if self.index is None else np.asarray(self.used_index.to_numpy())

    def series(self, values: Array, name: str) -> Any:
        """One value for each row: a Series with the index of the rows for pandas, otherwise the array."""
        values = self._whole(values)
        if self.library != "pandas":
            return values
        index = self.index if self.padded else self.used_index
        return importlib.import_module("pandas").Series(values, index=index, name=name)

    def _whole(self, values: Array) -> Array:
        """The values with gaps for the rows that were not used, where results are padded."""
        if not self.padded or self.used is None:
            return values
        values = np.asarray(values)
        number = values.dtype.kind in "fiu"
        out = np.full((self.count, *values.shape[1:]), np.nan if number else None, dtype=None if number else object)
        out[self.used] = values
        return out

    def table(self, columns: Mapping[str, Any]) -> Any:
        """Columns with one value for each row, with the index of the rows.

        Other libraries than pandas have a column ``row`` instead, the positions in the table, where some of its rows
        were not used.
        """
        if self.padded and self.used is not None:
            return native_frame(self.library, {name: self._whole(part) for name, part in columns.items()}, self.index)
        if self.library != "pandas" and self.used is not None:
            columns = {"row": self.positions, **columns}
        return native_frame(self.library, columns, self.used_index)

    def values(self, given: Any, argument: str) -> Any:
        """What is given for each row used, or for each row of the table, as an array over the rows used.

        Raises
        ------
        LMMError
            For a Series whose labels are not those of the rows, another length, and what `plain_array` refuses.
        """
        n = self.count if self.used is None else len(self.used)
        own = index_of(given)
        if own is None or self.index is None:
            given = aligned(given, None, argument)
        elif self.used is not None and own.equals(self.index):
            given = given.iloc[self.used]
        else:
            given = aligned(given, self.used_index, argument)
        array = plain_array(given, argument)
        if array.ndim == 0:  # one value for all rows, or none: that is for the caller to say
            return given
        if len(array) not in (n, self.count if self.used is not None else n):
            dropped = "" if self.used is None else f", which are {n} of the {self.count} rows of the data"
            raise LMMError(f"{argument} has {len(array)} values for {n} rows used{dropped}; give one per row")
        return array if self.used is None or len(array) == n else array[self.used]

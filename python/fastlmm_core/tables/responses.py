"""Tables of responses: one response per column, one observation per row, read a few columns at a time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import float_array
from ..support.types import Array
from .alignment import positions
from .columns import Column, Table
from .rows import CallerRows

__all__ = ["ResponseColumns", "is_table"]


def is_table(values: Any) -> bool:
    """Whether responses come as a table: with two dimensions and named columns."""
    named = getattr(values, "columns", None) is not None
    return (
        isinstance(values, Mapping)
        or hasattr(values, "to_native")
        or (named and len(getattr(values, "shape", ())) == 2)
    )


class ResponseColumns:
    """The columns of a table as rows of an array (n_responses, n), which is never made as a whole.

    Parameters
    ----------
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of arrays
        Missing values are NaN.
    rows : CallerRows
        The rows that are wanted: by label where both have an index; otherwise the table has these rows, or all rows of
        the data that they are of.
    name : str
        What messages call the table.

    Attributes
    ----------
    shape : (int, int)
    labels : (n_responses,) array
        Names of the columns.

    Raises
    ------
    LMMError
        For columns that do not hold numbers, and rows that are not those wanted.
    """

    def __init__(self, data: Any, rows: CallerRows, name: str = "Y") -> None:
        table = Table(data, name)
        self._data = data.to_native() if hasattr(data, "to_native") else data
        self._library = table.library
        names = table.names if table.library == "pyarrow" else list(getattr(self._data, "columns", self._data))
        self.labels = np.empty(len(names), dtype=object)
        for i, label in enumerate(names):  # at once numpy would take tuples apart
            self.labels[i] = label
        n = len(rows.positions)
        if table.library == "dict":
            self._data = {key: _numbers(values, f"{name}[{key!r}]") for key, values in data.items()}
            lengths = {key: len(values) for key, values in self._data.items() if len(values) != table.n_rows}
            for key, length in lengths.items():
                raise LMMError(f"{name}[{key!r}] has {length} values where other responses have {table.n_rows}")
        else:
            self._refuse_text(names)
        self._rows = self._places(rows, table.n_rows if names else n)
        self.shape = (len(names), n)

    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def _refuse_text(self, names: list[Any]) -> None:
        """Refuse the first column that does not hold numbers."""
        kinds: Any = self._data.schema.types if self._library == "pyarrow" else self._data.dtypes
        known: dict[Any, bool] = {}
        for at, kind in enumerate(kinds):
            if kind not in known:
                known[kind] = Column("", self._column(at)).settle().number is not None
            if not known[kind]:
                raise LMMError(f"Y: column {names[at]!r} must hold numbers, not {kind}; drop or convert it")

    def _column(self, at: int) -> Any:
        if self._library == "pandas":
            return self._data.iloc[:, at]
        return self._data.column(at) if self._library == "pyarrow" else self._data.to_series(at)

    def _places(self, rows: CallerRows, count: int) -> NDArray[np.intp] | None:
        """Where the rows wanted stand in the table, None where it has these rows and no others."""
        n = len(rows.positions)
        if self._library == "pandas":
            own = self._data.index
            if rows.index is not None:
                if own.equals(rows.index):
                    return rows.used
                self._refuse_transposed(rows)
                return positions(own, rows.used_index, "Y")
            if not own.equals(importlib.import_module("pandas").RangeIndex(count)):
                raise LMMError(
                    "Y has an index of its own and the rows of the data have no labels; give Y.to_numpy().T if its "
                    "rows are in the order of the data"
                )
        if count == n:
            return None
        if rows.used is not None and count == rows.count:
            return rows.used
        turned = "; transpose it, so that each column is a response" if len(self.labels) in (n, rows.count) else ""
        all_of = "" if rows.used is None else f" (or {rows.count}, all rows of the data)"
        raise LMMError(f"Y has {count} rows, and each column is a response of {n} observations{all_of}{turned}")

    def _refuse_transposed(self, rows: CallerRows) -> None:
        wanted = rows.used_index
        if not self._data.index.isin(wanted).any() and wanted.isin(self._data.columns).all():
            raise LMMError("Y has the labels of the rows of the data as its columns; give Y.T, one response per column")

    def __getitem__(self, at: Any) -> Array:
        """Responses by position, in float64: one (n,), or several (k, n)."""
        if isinstance(at, (int, np.integer)):
            one: Array = self[[int(at)]][0]
            return one
        chosen = np.arange(self.shape[0])[at]
        if self._library == "pandas":
            block = (
                self._data.iloc[:, at if isinstance(at, slice) else chosen]
                .to_numpy(dtype=np.float64, na_value=np.nan)
                .T
            )
        elif self._library == "polars":
            polars = importlib.import_module("polars")
            part = self._data.select(polars.nth(chosen.tolist())) if len(chosen) else None
            block = np.empty((0, self._data.height)) if part is None else part.cast(polars.Float64).to_numpy().T
        elif self._library == "pyarrow":
            block = np.array([_of_arrow(self._data.column(int(i))) for i in chosen]).reshape(len(chosen), -1)
        else:
            keys = list(self._data)
            block = np.array([self._data[keys[i]] for i in chosen]).reshape(len(chosen), -1)
        return np.asarray(block if self._rows is None else block[:, self._rows], dtype=np.float64)


def _numbers(values: Any, name: str) -> Array:
    if isinstance(values, np.ma.MaskedArray):
        values = np.where(np.ma.getmaskarray(values), np.nan, values.data)
    return float_array(values, name, 1)


def _of_arrow(column: Any) -> Array:
    compute = importlib.import_module("pyarrow.compute")
    values = compute.cast(column, "float64", safe=False).to_numpy()
    return np.asarray(values, dtype=np.float64)

"""Tables that are not read yet: lazy frames, relations of a database, streams of Arrow batches."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import LMMError

__all__ = ["collected", "readable"]


def collected(data: Any, names: Mapping[str, bool] | None = None) -> Any:
    """A table that is read: the columns named of a lazy one, where it has them, and anything else as it is.

    Parameters
    ----------
    data : table, polars.LazyFrame, relation of DuckDB, or object with ``__arrow_c_stream__``
    names : mapping, optional
        Columns that are needed, and whether they must be there; by default all.  Where one that must be is not, no rows
        are read: what follows will say so, and knows the names of all columns.
    """
    if hasattr(data, "to_native"):  # a narwhals frame
        data = data.to_native()
    polars = sys.modules.get("polars")
    if polars is not None and isinstance(data, polars.LazyFrame):
        chosen = _chosen(data.collect_schema().names(), names)
        return (data if names is None else data.head(0) if chosen is None else data.select(chosen)).collect()
    if _is_relation(data):
        chosen = _chosen(list(data.columns), names)
        if names is not None:
            # quoted as SQL wants it, each quote in a name doubled
            quoted = ['"' + name.replace('"', '""') + '"' for name in chosen or ()]
            data = data.project(", ".join(quoted)) if quoted else data.limit(0)
        return _arrow(data)
    return readable(data)


def readable(data: Any) -> Any:
    """What can be read more than once: a stream of Arrow batches as a table, anything else as it is."""
    if _is_relation(data) or hasattr(data, "to_native") or not hasattr(data, "__arrow_c_stream__"):
        return data
    known = {"pandas": ("DataFrame", "Series"), "polars": ("DataFrame", "Series"), "pyarrow": ("Table", "RecordBatch")}
    for library, kinds in known.items():
        module = sys.modules.get(library)
        if module is not None and isinstance(data, tuple(getattr(module, kind) for kind in kinds)):
            return data
    return data if isinstance(data, Mapping) else _arrow(data)


def _chosen(held: list[str], names: Mapping[str, bool] | None) -> list[str] | None:
    """The columns held that are needed; None where one is missing, or there is none."""
    needed = names or {}
    if any(must and name not in held for name, must in needed.items()):
        return None
    return [name for name in held if name in needed] or None


def _is_relation(data: Any) -> bool:
    return type(data).__name__ == "DuckDBPyRelation"


def _arrow(data: Any) -> Any:
    """A table of pyarrow or, without it, of polars."""
    for library, kind in (("pyarrow", "table"), ("polars", "DataFrame")):
        try:
            module = importlib.import_module(library)
        except ImportError:
            continue
        return getattr(module, kind)(data)
    raise LMMError(f"a {type(data).__name__} is read by pyarrow or polars; install one, e.g. pip install pyarrow")

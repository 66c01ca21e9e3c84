"""Fitted values and residuals of rows that are not held, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any, cast

import numpy as np

from ..design.streamed import StreamedDesign
from ..errors import LMMError
from ..support.blas_threads import quiet_product
from ..support.types import Array
from .labels import joined, labels_of
from .recipe import Piece, Recipe, Seen, SharedTerms
from .source import Scan, ahead

__all__ = ["augmented", "write_augmented"]


def augmented(
    design: StreamedDesign, beta: Array, blups: tuple[Array, ...], source: Scan, prefix: str
) -> Iterator[Any]:
    """The rows of a source with fitted values and residuals, in tables of pyarrow.

    Parameters
    ----------
    design : StreamedDesign
    beta : (p,) array
    blups : tuple of (m, q) arrays
    source : Scan
    prefix : str
        Of the names of the columns that are added.

    Yields
    ------
    pyarrow.Table
        All rows and columns of a piece, and ``fitted``, ``fitted_population``, ``resid`` and ``resid_marginal``, null
        where values are missing.

    Raises
    ------
    LMMError
        For a group that the fit does not know, or a column of such a name.
    """
    recipe = cast("Recipe", design.recipe)
    for table in ahead(source.tables()):
        piece = recipe.piece(table, Seen.nothing())
        n = table.n_rows
        values = {} if piece is None else _of_piece(piece, beta, blups, design, recipe.shared)
        rows = slice(None) if piece is None or piece.rows is None else piece.rows
        arrow = import_module("pyarrow")
        out = _arrow_table(table.data)
        for name in ("fitted", "fitted_population", "resid", "resid_marginal"):
            if prefix + name in out.schema.names:
                raise LMMError(f"the data have a column {prefix + name!r} already; give prefix=, e.g. prefix='.'")
            whole, gap = np.zeros(n), np.ones(n, dtype=bool)
            if values:
                whole[rows], gap[rows] = values[name], False
            out = out.append_column(prefix + name, arrow.array(whole, mask=gap))
        yield out


def _of_piece(
    piece: Piece, beta: Array, blups: tuple[Array, ...], design: StreamedDesign, shared: SharedTerms
) -> dict[str, Array]:
    population = quiet_product(piece.X, np.nan_to_num(beta))
    if piece.offset is not None:
        population = population + piece.offset
    fitted = population
    for factor, effects in zip(design.factors, blups, strict=True):
        grouping = factor.grouping
        codes, labels = labels_of(*piece.groups[grouping.name], piece.rows)
        labels = joined(grouping.name, labels)
        level = grouping.locate(labels)
        if (level < 0).any():
            unknown = labels.tolist()[np.flatnonzero(level < 0)[0]]
            raise LMMError(
                f"{piece.table.argument} has the level {unknown!r} of {grouping.name!r}, which the fit does not know; "
                "give the rows of the fit, or use predict for new ones"
            )
        own = shared.which[shared.names.index(grouping.name)]
        Z = np.column_stack([piece.Z[t][:, j] for t, j in (shared.sources[i] for i in own)])
        fitted = fitted + np.einsum("ij,ij->i", Z, effects[level[codes]])
    return {
        "fitted": fitted,
        "fitted_population": population,
        "resid": piece.y - fitted,
        "resid_marginal": piece.y - population,
    }


def _arrow_table(data: Any) -> Any:
    """A table of any library as one of pyarrow."""
    arrow = import_module("pyarrow")
    if isinstance(data, arrow.Table):
        return data
    if isinstance(data, arrow.RecordBatch):
        return arrow.Table.from_batches([data])
    if isinstance(data, dict):
        return arrow.table(data)
    if hasattr(data, "to_arrow"):
        return data.to_arrow()
    return arrow.Table.from_pandas(data, preserve_index=False)


def write_augmented(tables: Iterator[Any], path: str | os.PathLike[str]) -> None:
    """Write tables to one Parquet file.

    Raises
    ------
    LMMError
        Where the file cannot be written.
    """
    parquet = import_module("pyarrow.parquet")
    writer: Any = None
    try:
        for table in tables:
            if writer is None:
                writer = parquet.ParquetWriter(os.fspath(path), table.schema)
            writer.write_table(table.cast(writer.schema))
    except (OSError, ValueError) as error:
        if isinstance(error, LMMError):
            raise
        raise LMMError(f"path: {os.fspath(path)!r} cannot be written: {error}") from error
    finally:
        if writer is not None:
            writer.close()

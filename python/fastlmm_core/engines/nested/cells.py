"""Several grouping factors from sums by cells, where rows are not held.

Nested factors have as many cells as the finest has levels, and are taken as they are from rows in memory.  Others are
put together from rows that stand for the cells.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...kernels.records.rows import RowColumns
from ...problem.columns import condition_z
from ...problem.identification import GroupedColumns
from ...support.types import Array, Index
from ..crossed.problem import CrossedProblem, crossed_problem, problem_fields
from ..one_factor.reading import RowReader
from ..one_factor.summing import Conditioned, conditioned_sums
from .problem import chain_problem, nested
from .shared import CellRows, SharedColumns, conditioned_x

__all__ = ["CellReader", "condition_cells"]


class CellReader(RowReader, Protocol):
    """Rows by cells, in the order of the levels of the factor that has most."""

    @property
    def shared(self) -> SharedColumns:
        """The grouping factors, that with most levels first; known after the first sums."""

    @property
    def cells(self) -> NDArray[np.int64]:
        """Levels of the cells (cells, factors); known after the first sums."""


def condition_cells(reader: CellReader, columns: RowColumns, sigma: float | None = None) -> CrossedProblem:
    """Cross-products of a model with several grouping factors, conditioned.

    Parameters
    ----------
    reader : CellReader
    columns : RowColumns
        Shifts and scales to begin with.
    sigma : float, optional
        See `engines.choose.condition_factors`.

    Raises
    ------
    LMMError
        As `engines.choose.condition_factors`.
    """
    found = conditioned_sums(
        reader, columns, lambda *sums: reader.shared.turns(*sums), lambda *rows: reader.shared.precondition(*rows),
        sigma=sigma,
    )  # fmt: skip
    assert found is not None
    shared, p = reader.shared, len(columns.beta0)
    levels = [np.ascontiguousarray(own, dtype=np.intp) for own in reader.cells.T]
    sizes = shared.sizes
    as_chain = len(set(sizes)) == len(sizes) and len(levels[0]) == max(sizes) and not shared.structure.restricted
    # what is added to a response that X reproduces is no part of any row
    if as_chain and not found.alone:
        nesting = nested(levels, sizes)
        chain = None if nesting is None else chain_problem(reader, found, shared, nesting, p, sigma is not None)
        if chain is not None:
            return chain
    return _crossed(reader, found, levels, p, sigma is not None)


def _crossed(reader: CellReader, found: Conditioned, levels: list[Index], p: int, known: bool) -> CrossedProblem:
    """The problem by elimination of levels, from rows that stand for the cells; `known`: the residual variance is."""
    shared, n, columns = reader.shared, reader.n, found.columns
    Z, xy, cell = CellRows(found, n).all_rows()
    if columns.z_transform is not None:
        Z = Z @ np.linalg.inv(columns.z_transform)
    z_map = np.zeros((shared.structure.q, shared.structure.q))
    grouped: list[GroupedColumns] = []
    for f, (start, mine) in enumerate(zip(shared.starts, shared.which, strict=True)):
        part = slice(start, start + len(mine))
        own, turned = condition_z(np.ascontiguousarray(Z[:, mine]), None, shared.local(f), n)
        constant = mine.index(columns.z_constant) if columns.z_constant in mine else -1
        z_map[part, part] = kernels.scale_map(np.ascontiguousarray(columns.z_scale[:, mine]), constant) @ turned
        grouped.append(GroupedColumns(own, levels[f][cell], shared.sizes[f], shared.names[f], shared.columns[f]))
    gram = found.xy.T @ kernels.unpack(found.packed, len(found.xy)) @ found.xy
    gram[-1, -1] += found.alone
    fields: dict[str, Any] = {
        "gram": gram, "z_map": z_map, "scale": found.scale, "alone": found.alone,
        **problem_fields(
            n, p, list(shared.sizes), reader.log_weights, shared.structure, conditioned_x(found),
            found.x_turn @ found.beta,
        ),
    }  # fmt: skip

    def natural(f: int) -> Array:
        mine = shared.which[f]
        back = np.linalg.inv(kernels.scale_map(columns.z_scale, columns.z_constant))
        return np.asarray(Z @ back[:, mine])

    return crossed_problem(grouped, xy, fields, known or shared.structure.restricted, natural)

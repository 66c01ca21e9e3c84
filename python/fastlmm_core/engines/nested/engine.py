"""The engine of nested factors: sweeps over families of levels, and block elimination for what needs every level.

The criterion and its derivatives are in the kernel `NestedEngine`; see `problem` for the columns in which all factors
are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...kernels.hierarchies import NestedEngine, NestedSums
from ...support.types import Array

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ...kernels.records.rows import ConditionedRows
    from ..crossed.engine import CrossedCriterion

__all__ = ["NestedCriterion"]


class NestedCriterion(NestedEngine):
    """The criterion as a function of the free elements of L, with the interface of `CrossedCriterion`.

    Parameters
    ----------
    levels, within, gram, n_rows, parts, structure :
        See `NestedEngine`.
    elimination : callable
        Makes the engine of the same problem by block elimination.
    """

    def __init__(
        self, levels: NestedSums, within: Array, gram: Array, n_rows: int, parts: list[tuple[int, Array]],
        structure: CovarianceStructure, elimination: Callable[[], CrossedCriterion],
    ) -> None:  # fmt: skip
        self._structure, self._elimination = structure, elimination
        self._every: tuple[Array, bool, CrossedCriterion] | None = None

    def every_level(self) -> CrossedCriterion:
        """The engine of block elimination at the last point of order 1 or more, where each level can be had."""
        factor, known = self.state()[1], self._every
        if known is None or known[1] != self.reml or not np.array_equal(known[0], factor):
            engine = self._elimination() if known is None else known[2]
            engine.reml = self.reml
            engine.evaluate(self._structure.theta(self._structure.canonical(factor)), 1)
            self._every = known = factor, self.reml, engine
        return known[2]

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by rows at the last point, V relative to sigma^2; see `CrossedCriterion.solve`."""
        return self.every_level().solve(v, rows)

    def scores(self) -> Array:
        """E = Z'V^-1 [X y] (n_slots, k) in the layout's order."""
        return self.every_level().scores()

    def multiply(self, columns: Array) -> Array:
        """N columns for (n_slots, c) columns."""
        return self.every_level().multiply(columns)

    def conditional(self, precision: bool = False) -> Array:
        """Posterior covariance of each level relative to sigma^2, or N_aa: (n_slots, q), left-justified."""
        return self.every_level().conditional(precision)

    def gram_times(self, columns: Array) -> Array:
        """Z'Z columns for (n_slots, c) columns."""
        return self._elimination().gram_times(columns)

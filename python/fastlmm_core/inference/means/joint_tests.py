"""F tests of main effects and interactions of marginal means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...formula.coding import fixed_terms
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.types import Array
from ...tables.columns import native_frame
from .. import wald as inference
from ..anova import estimable_part, f_statistic
from .families import families_of

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from .families import Options
    from .grid import ReferenceGrid

__all__ = ["JointTests", "joint_tests"]

Labels = dict[str, list[Any]]


@checked
@dataclass(frozen=True, repr=False)
class JointTests(Shown):
    """F tests of main effects and interactions of marginal means; prints as text.

    Attributes
    ----------
    labels : dict
        The term, and the levels of `by`.
    df_num, df_denom, statistic, pvalues : (k,) array
        NaN where nothing about a term can be estimated.
    notes : tuple of str
    """

    labels: Labels
    df_num: NDArray[np.intp]
    df_denom: Array
    statistic: Array
    pvalues: Array
    notes: tuple[str, ...]
    _library: str = field(repr=False)

    def to_frame(self) -> Any:
        """A table in the library of the caller's data: term, by, df_num, df_denom, statistic, p_value."""
        return native_frame(
            self._library,
            {
                **self.labels,
                "df_num": self.df_num,
                "df_denom": self.df_denom,
                "statistic": self.statistic,
                "p_value": self.pvalues,
            },
        )

    def _shown(self) -> Iterator[str | Cells]:
        from ...support.text_tables import aligned_cells, p_value_cell, statistic_cell

        columns = [
            *([str(value) for value in values] for values in self.labels.values()),
            [str(v) for v in self.df_num.tolist()],
            aligned_cells([f"{v:.2f}" for v in self.df_denom.tolist()]),
            aligned_cells([statistic_cell(v) for v in self.statistic.tolist()]),
            [p_value_cell(v) for v in self.pvalues.tolist()],
        ]
        rows = [list(row) for row in zip(*columns, strict=True)]
        yield Cells([*self.labels, "NumDF", "DenDF", "F", "p"], rows, len(self.labels))
        yield from self.notes


def joint_tests(
    result: Fit, grid: ReferenceGrid, factors: Sequence[str], by: Sequence[str], means: tuple[Labels, Array],
    options: Options,
) -> JointTests:  # fmt: skip
    """Test that all comparisons of the levels of each factor, and of their interactions, are zero.

    Parameters
    ----------
    result : Fit
    grid : ReferenceGrid
    factors, by : sequences of str
        Factors of the means, and those that tell families apart.
    means : tuple
        Columns of their labels, and the linear functions of the coefficients (n, p) that they are.
    options : Options
        Kind of degrees of freedom and of covariance.

    Returns
    -------
    JointTests

    Raises
    ------
    LMMError
        Where there is only one mean.
    """
    labels_of, functions = means
    if not any(len(grid.levels[name]) > 1 for name in factors):
        raise LMMError("joint_test needs at least two means to compare; name a factor with several levels in `factors`")
    variables = [term.variables for term in fixed_terms(result.model.design)]
    families = families_of(labels_of, by)
    terms = [
        term
        for size in range(1, len(factors) + 1)
        for term in combinations(factors, size)
        if any(set(term) <= used for used in variables)
    ]
    labels: Labels = {"term": [], **{name: [] for name in by}}
    rows: list[tuple[int, float, float, float]] = []
    lost = False
    for rows_of in families:
        for term in terms:
            weights = np.ones((1, 1))
            for name in reversed(factors):  # the first factor varies fastest
                k = len(grid.levels[name])
                part = np.diff(np.eye(k), axis=0) if name in term else np.full((1, k), 1.0 / k)
                weights = np.kron(weights, part)
            if not len(weights):  # a factor at one level
                continue
            L = weights @ functions[rows_of]
            wanted = np.linalg.matrix_rank(L)
            L = estimable_part(result, L)
            lost |= len(L) < wanted
            labels["term"].append(":".join(term))
            for name in by:
                labels[name].append(labels_of[name][rows_of[0]])
            if not len(L):
                rows.append((0, np.nan, np.nan, np.nan))
                continue
            test = inference.wald(result, L, None, *options)
            rows.append((test.df_num, test.df_denom, f_statistic(test), test.pvalue))
    df_num, df_denom, statistic, pvalues = (np.array(column) for column in zip(*rows, strict=True))
    notes = ("Some comparisons are not estimable, because combinations of levels have no data.",) if lost else ()
    return JointTests(labels, df_num, df_denom, statistic, pvalues, notes, result.model.library)

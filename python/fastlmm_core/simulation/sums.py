"""Parametric draws for models whose rows are not held: of the sums that a fit sees, Z'y, X'y and y'y.

The rows that stand for a group, or for a level of the finest of nested factors (see `engines.nested.shared`), are
contrasts of its rows, so that a response on them is Z Lambda u + e as on the rows.  What the groups leave of X gives
normal numbers of its own, and all that is orthogonal to both a chi-square.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..design.streamed import StreamedDesign, refuse_rows
from ..engines.nested.problem import NestedProblem
from ..engines.nested.shared import RESIDUE, rooted
from ..engines.one_factor.problem import OneFactorProblem
from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["SumDraws"]


class SumDraws:
    """Models of responses drawn from a fit, mean X beta plus offset.

    Parameters
    ----------
    result : Fit
        Of a model without rows.

    Raises
    ------
    LMMError
        For crossed factors.
    """

    def __init__(self, result: Fit) -> None:
        self.model: Model = result.model
        problem = self.model.problem
        r = problem.rank
        self._made: Callable[[Array, Array], Any]
        if isinstance(problem, OneFactorProblem):
            raw, xy, z_turns = problem.raw, problem.xy_transform, [problem.z_transform]
            levels = [np.arange(problem.m)]
            total = kernels.unpack(problem.within, r + 1)[:r, :r]
            self._made = self._one_factor
        elif isinstance(problem, NestedProblem):
            chain = problem.chain
            raw, xy = chain.raw, chain.xy_map
            level, levels = np.arange(len(raw)), [np.arange(len(raw))]
            for parent in chain.parents:
                level = parent[level]
                levels.append(level)
            z_turns = [chain.z_map @ chain.maps[f] for f in chain.order]
            total = problem.gram[:r, :r]
            self._made = self._nested
        else:
            refuse_rows("a parametric bootstrap of crossed factors, or of groups in buckets,")
        self._rows, self._xy, self._cell = rooted(raw, xy, len(z_turns[0]))
        X = self._xy[:, :r]
        within = total if isinstance(problem, OneFactorProblem) else total - X.T @ X
        values, vectors = np.linalg.eigh(within)
        some = values > RESIDUE
        self._root = vectors[:, some] * np.sqrt(values[some])
        self._left = problem.n - len(self._rows) - int(some.sum())
        self._sigma = result.sigma / problem.scale
        factor = np.linalg.solve(problem.z_map, result.relative_factor) * self._sigma
        starts = problem.columns if isinstance(problem, NestedProblem) else (0,)
        order = problem.chain.order if isinstance(problem, NestedProblem) else [0]
        self._terms: list[tuple[Array, NDArray[np.intp], int]] = []
        for f, turn, own in zip(order, z_turns, levels, strict=True):
            part = slice(starts[f], starts[f] + turn.shape[1])
            self._terms.append((self._rows @ turn @ factor[part, part], own[self._cell], int(own.max()) + 1))
        self._beta = np.nan_to_num(result.beta)

    def __call__(self, rng: np.random.Generator) -> Model:
        """The model of one response."""
        y = self._sigma * rng.standard_normal(len(self._rows))
        for Z, level, m in self._terms:
            y += np.einsum("ij,ij->i", Z, rng.standard_normal((m, Z.shape[1]))[level])
        own = self._sigma * rng.standard_normal(self._root.shape[1])
        rest = self._sigma**2 * float(rng.chisquare(self._left)) if self._left else 0.0
        within = np.append(self._root @ own, own @ own + rest)
        design = self.model.design
        assert isinstance(design, StreamedDesign)
        return self.model.of_sums(design, self._made(y, within))

    def _lines(self, raw: Array, y: Array) -> Array:
        """The lines with the sums of y in their last columns."""
        width, k = self._rows.shape[1], len(self._xy[0])
        out = raw.copy()
        n_a = width * (width + 1) // 2
        for a in range(width):
            out[:, n_a + (a + 1) * k - 1] = np.bincount(self._cell, self._rows[:, a] * y, len(raw))
        return out

    def _one_factor(self, y: Array, within: Array) -> OneFactorProblem:
        problem = self.model.problem
        assert isinstance(problem, OneFactorProblem)
        xy, m, q, k = _apart(problem.xy_transform), problem.m, problem.structure.q, problem.rank + 1
        raw = self._lines(problem.raw, y)
        packed, _ = kernels.factor_groups(raw, problem.z_transform, xy)
        smaller = None if problem.uniform else kernels.compress(packed, m, q, k)
        lower = problem.within.copy()
        lower[-k:] = within
        return problem._replace(
            raw=raw, packed=packed if smaller is None else smaller, uniform=smaller is None, within=lower,
            xy_transform=xy, beta_base=self._beta, saturated=False, outside=0, alone=0.0,
        )  # fmt: skip

    def _nested(self, y: Array, within: Array) -> NestedProblem:
        problem = self.model.problem
        assert isinstance(problem, NestedProblem)
        chain = problem.chain._replace(raw=self._lines(problem.chain.raw, y), xy_map=_apart(problem.chain.xy_map))
        gram = problem.gram.copy()
        gram[-1, :-1] = gram[:-1, -1] = self._xy[:, :-1].T @ y + within[:-1]
        gram[-1, -1] = y @ y + within[-1]
        return problem.with_chain(chain, gram=gram, beta_base=self._beta, saturated=False, outside=0)


def _apart(turn: Array) -> Array:
    """A turn of [X y] that leaves y as it is."""
    out = turn.copy()
    out[:, -1] = 0.0
    out[-1, -1] = 1.0
    return out

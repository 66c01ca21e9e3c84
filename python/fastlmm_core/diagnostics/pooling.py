"""What grouping does to estimates: the coefficients of groups, shrunken towards those of the population.

With A_i = Z_i'W_iZ_i, the group's own least-squares coefficients c_i have sampling covariance sigma^2 A_i^-1 around
their true values, which have covariance G around the population's.  The partially pooled ones are the average

    gamma + BLUP_i = S_i c_i + (I - S_i) gamma,    S_i = G (G + sigma^2 A_i^-1)^-1

(Lindley and Smith 1972, J. R. Statist. Soc. B 34, 1-41; Raudenbush and Bryk 2002, Hierarchical Linear Models, 2nd ed.,
ch. 3).  All sums over groups are taken for all groups at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..estimation.whitening import by_residuals
from ..support.arguments import checked
from ..support.blas_threads import quiet_product
from ..support.display import LINES, Cells, Shown, first_lines
from ..support.text_tables import aligned_cells, significant_cell
from ..support.types import Array
from ..tables.columns import native_frame
from .group_sums import conditional_covariances, conditioned_rows, fixed_rows, grams_of, sums_of

if TYPE_CHECKING:
    from ..design.grouping import Factor, Grouping
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["Pooling", "pooling", "population_map"]


IN_SPAN = 1e-9
"""A column of X is a combination of those of Z when what these leave of it is relatively smaller."""

OWN_RANK = 1e-12
"""Smallest eigenvalue of the correlations of a group's columns for which it has estimates of its own."""


@checked
@dataclass(frozen=True, repr=False)
class Pooling(Shown):
    """Coefficients that vary between groups: own estimates, one for all, and the compromise.

    Attributes
    ----------
    names : tuple of str
        The q coefficients.
    group_name : str
    labels : (m,) array
        Of the groups.
    n : (m,) int array
        Observations of each group.
    population : (q,) array
        Population coefficients of the mixed model; 0 for a column of Z that the columns of X do not contain.
    shrinkage : (m, q, q) array
        S_i: the weights of the group's own coefficients in the partially pooled ones (also where it has none).
    reliability : (m, q) array
        G_kk / (G_kk + sigma^2 (A_i^-1)_kk), the share of the variance of the group's own estimate that is variance of
        the true coefficient (Raudenbush and Bryk 2002, eq. 3.58); NaN where there is no own estimate.  For a random
        intercept it is tau^2 / (tau^2 + sigma^2 / n_i) and equal to S_i.
    """

    names: tuple[str, ...]
    group_name: str
    labels: NDArray[Any]
    n: NDArray[np.intp]
    population: Array
    shrinkage: Array
    reliability: Array
    _library: str = field(repr=False)
    _of_response: tuple[Array, Array, Array] | None = field(repr=False)

    def _found(self, i: int) -> Array:
        if self._of_response is None:
            raise LMMError(
                "the model has no response, so that groups have no coefficients: give y, or ask for shrinkage and "
                "reliability, which the design and the parameters tell"
            )
        return self._of_response[i]

    @property
    def no_pooling(self) -> Array:
        """Least squares in each group alone (m, q), the other fixed effects and the offset at their values in the fit.

        NaN where the group's rows do not determine all of its coefficients.
        """
        return self._found(0)

    @property
    def complete_pooling(self) -> Array:
        """Least squares over all rows, groups ignored (q,)."""
        return self._found(1)

    @property
    def partial_pooling(self) -> Array:
        """Population coefficient plus BLUP (m, q)."""
        return self._found(2)

    @property
    def average_reliability(self) -> Array:
        """Mean reliability over the groups with own estimates."""
        own = np.isfinite(self.reliability[:, 0])
        return np.asarray(self.reliability[own].mean(axis=0) if own.any() else np.full(len(self.names), np.nan))

    def to_frame(self) -> Any:
        """One row per group and coefficient, in the library of the caller's data (or a dict of arrays)."""
        m, q = self.reliability.shape
        columns = {
            self.group_name: np.repeat(self.labels, q),
            "coefficient": np.array(self.names * m, dtype=object),
            "n": np.repeat(self.n, q),
        }
        if self._of_response is not None:
            columns["no_pooling"] = self.no_pooling.ravel()
            columns["complete_pooling"] = np.tile(self.complete_pooling, m)
            columns["partial_pooling"] = self.partial_pooling.ravel()
        columns |= {
            "shrinkage": np.diagonal(self.shrinkage, axis1=1, axis2=2).ravel(),
            "reliability": self.reliability.ravel(),
        }
        return native_frame(self._library, columns)

    def _shown(self) -> Iterator[str | Cells]:
        reliable = ", ".join(f"{k} {v:.3f}" for k, v in zip(self.names, self.average_reliability.tolist(), strict=True))
        own = int(np.isfinite(self.reliability[:, 0]).sum())
        yield f"Pooling of {len(self.labels):,} levels of {self.group_name}, {own:,} with estimates of their own"
        parts = [("shrinkage", np.diagonal(self.shrinkage, axis1=1, axis2=2)), ("reliability", self.reliability)]
        if self._of_response is not None:
            parts = [("own", self.no_pooling), ("pooled", self.partial_pooling), *parts]
        some = slice(0, LINES + 1)  # a row more than is shown tells that there are others
        header, columns = [self.group_name, "n"], [self.labels[some].tolist(), self.n[some].tolist()]
        for j, name in enumerate(self.names):
            header += [f"{name}: {part}" if part == parts[0][0] else part for part, _ in parts]
            columns += [aligned_cells([significant_cell(v) for v in values[some, j].tolist()]) for _, values in parts]
        rows = [list(map(str, row)) for row in zip(*columns, strict=True)]
        yield Cells(header, first_lines(rows, count=len(self.labels)))
        yield f"Mean reliability: {reliable}"


def population_map(model: Model, factor: Factor | None = None) -> Array:
    """T (q, p) with Z T[:, k] = X[:, k] for the columns of X that are combinations of those of Z, 0 for the others.

    T beta are the population values of the coefficients that vary: beta itself where Z repeats columns of X, the means
    of the cells where X codes by contrasts what Z codes by indicators, 0 for what is in Z alone.

    Parameters
    ----------
    model : LinearMixedModel
    factor : Factor, optional
        The grouping factor whose columns of Z are meant; by default the first.

    Returns
    -------
    (q, p) array
    """
    factor = model.factors[0] if factor is None else factor
    X, Z = model.exog, model.exog_re[:, factor.columns]
    rows, turn = conditioned_rows(model, factor)
    gram = rows.T @ rows
    out = np.zeros((Z.shape[1], X.shape[1]))
    for k, column in enumerate(X.T):
        same = [j for j in range(Z.shape[1]) if np.array_equal(column, Z[:, j])]
        if same:
            out[same[0], k] = 1.0
            continue
        inner = np.linalg.solve(gram, rows.T @ column)
        rest = column - rows @ inner
        inner += np.linalg.solve(gram, rows.T @ rest)
        if np.linalg.norm(column - rows @ inner) <= IN_SPAN * np.linalg.norm(column):
            out[:, k] = turn @ inner
    return out


def _exists(grams: Array, grouping: Grouping) -> NDArray[np.bool_]:
    """Which groups' rows determine all coefficients (m,)."""
    size = np.sqrt(np.diagonal(grams, axis1=1, axis2=2))
    safe = np.where(size > 0.0, size, 1.0)
    smallest = np.linalg.eigvalsh(grams / (safe[:, :, None] * safe[:, None, :]))[:, 0]
    counts = np.bincount(grouping.index, minlength=len(grouping.labels))
    return np.asarray((size > 0.0).all(axis=1) & (smallest > np.maximum(OWN_RANK, counts * np.finfo(float).eps)))


def _own(rest: Array, rows: Array, grams: Array, grouping: Grouping) -> Array:
    """Least squares of `rest` on `rows` in each group (m, q); NaN where a group's rows do not determine it."""
    exists = _exists(grams, grouping)
    out = np.full(grams.shape[:2], np.nan)
    out[exists] = 0.0
    left = rest
    for _ in range(2):  # the second time takes out what rounding has left
        cross = sums_of(rows * left[:, None], grouping)
        out[exists] += np.linalg.solve(grams[exists], cross[exists][:, :, None])[:, :, 0]
        left = rest - np.einsum("ij,ij->i", rows, np.nan_to_num(out)[grouping.index])
    return out


def _least_squares(result: Fit) -> Array:
    """Coefficients of (weighted) least squares over all rows (p,), 0 for dropped columns.

    Weighted are the rows by the covariance of the residuals.
    """
    model, problem = result.model, result.model.problem
    rest = model.endog - quiet_product(model.exog, problem.beta_base)
    if model.offset is not None:
        rest = rest - model.offset
    columns = _by_noise(result, np.column_stack([fixed_rows(model), rest]))
    step = np.linalg.lstsq(columns[:, :-1], columns[:, -1], rcond=None)[0]
    return np.asarray(problem.beta_base + problem.x_map @ step)


def _by_noise(result: Fit, columns: Array) -> Array:
    """Columns (n, k) in rows whose residuals are independent with variance sigma^2."""
    if result.model.residual is not None:
        return by_residuals(result, columns)
    weights = result.model.weights
    return columns if weights is None else columns * np.sqrt(weights)[:, None]


def _refuse_subjects_across(model: Model, grouping: Grouping) -> None:
    """Refuse groups that share subjects of structured residuals: they have no estimates of their own."""
    part = model.residual
    if not model.structure.q:
        raise LMMError("pooling() is of random effects, and this model has none")
    if part is None:
        return
    subject = np.asarray(part.subject.codes)
    first = np.full(part.subject.n_slots, -1, dtype=np.intp)
    first[subject[::-1]] = grouping.index[::-1]
    if (first[subject] != grouping.index).any():
        raise LMMError(
            f"pooling() is of groups whose residuals are independent, and a {part.subject.name!r} of the residuals "
            f"{part.term} lies in several levels of {grouping.name!r}"
        )


def _chosen(model: Model, term: str | None) -> tuple[int, slice]:
    """Position of a term's grouping factor, and the columns of the term."""
    if term is None:
        return 0, model.factors[0].columns
    if term not in model.term_names:
        raise LMMError(f"term={term!r} is not a random-effects term; choose one of {', '.join(model.term_names)}")
    block = model.structure.blocks[model.term_names.index(term)]
    at = model.factors.index(model.factor_of(block))
    return at, slice(block.start, block.stop)


def pooling(result: Fit, term: str | None = None) -> Pooling:
    """No, complete and partial pooling of the coefficients that vary between groups.

    Parameters
    ----------
    result : LMMResult
    term : str, optional
        One random-effects term (see ``model.term_names``); by default all terms of the first grouping factor.  A
        group's own estimates are those of all terms of the factor together in either case; the random effects of other
        factors are held at their BLUPs.

    Returns
    -------
    Pooling

    Raises
    ------
    LMMError
        For an unknown term.
    """
    model = result.model
    at, columns = _chosen(model, term)
    factor = model.factors[at]
    grouping, part = factor.grouping, factor.columns
    _refuse_subjects_across(model, grouping)
    chosen = np.arange(columns.start, columns.stop) - factor.start
    to_z = population_map(model, factor)
    population = to_z @ np.nan_to_num(result.beta)
    rows, turn = conditioned_rows(model, factor)
    rows = _by_noise(result, rows)
    grams = grams_of(rows, None, grouping)
    exists = _exists(grams, grouping)
    of_response = None
    if model.has_response:
        effects = result.blups[at]
        rest = result.rest + np.einsum("ij,ij->i", model.exog_re[:, part], effects[grouping.index])
        deviation = _own(_by_noise(result, rest[:, None])[:, 0], rows, grams, grouping)
        of_response = (
            (population + deviation @ turn.T)[:, chosen],
            (to_z @ _least_squares(result))[chosen],
            (population + effects)[:, chosen],
        )
    noise = np.full((len(grams), len(turn)), np.nan)
    half = np.linalg.solve(np.linalg.cholesky(grams[exists]), np.broadcast_to(turn.T, grams[exists].shape))
    noise[exists] = result.sigma2 * np.sum(half**2, axis=1)
    variance = np.diag(result.covariance)[part]
    shares = conditional_covariances(result.optimum.factor[part, part], grams) @ grams
    shrinkage = turn @ shares @ np.linalg.inv(turn)
    return Pooling(
        names=tuple(result.effect_names[columns]),
        group_name=grouping.name,
        labels=grouping.labels,
        n=np.bincount(grouping.index, minlength=len(grouping.labels)),
        population=population[chosen],
        shrinkage=shrinkage[:, chosen[:, None], chosen],
        reliability=(variance / (variance + noise))[:, chosen],
        _library=model.library,
        _of_response=of_response,
    )

"""Refits of a model to resampled groups: whole groups several times or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.elements import sd_and_cor
from ..design.replication import independent_units
from ..engines.one_factor.problem import one_factor
from ..engines.starts import moment_start
from ..errors import LMMError
from ..estimation.deletion.contributions import conditioned_rows, within_groups
from ..estimation.optimize import optimize
from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["cases_of", "clusters_of", "parameters_of_fits", "refits", "refitted", "rescaled", "without_groups"]


DEPENDENT = 1e-10
"""Smallest eigenvalue of the correlations of X in a resample below which its columns depend on each other."""


def parameters_of_fits(model: Model, params: Array, covariance: Array, sigma2: Array) -> Array:
    """Fixed effects, standard deviations, correlations and sigma of many fits, in the order of the names."""
    return np.column_stack(
        [params[:, model.problem.kept], sd_and_cor(model.random.elements, covariance), np.sqrt(sigma2)]
    )


class _Cases:
    """Refits with whole groups counted several times or not at all, from their cross-products."""

    def __init__(self, result: Fit) -> None:
        model, problem = result.model, one_factor(result.model.problem)
        self.result = result
        grouping = model.grouping
        packed = problem.unpatterned()
        self.lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[: problem.m]
        self.within = within_groups(model, problem, conditioned_rows(model, problem), packed)
        self.sizes = np.bincount(grouping.index, minlength=problem.m)
        self._by_rows: _Clusters | None = None

    def fit(self, counts: NDArray[np.int64]) -> tuple[Array, Array, Array, float, bool, bool]:
        """Params, standard errors, G, sigma2, converged, singular with group i counted counts[i] times."""
        model, problem = self.result.model, self.result.model.problem
        structure, r = model.structure, problem.rank
        chosen = np.flatnonzero(counts)
        n_a = structure.q * (structure.q + 1) // 2
        weight = counts[chosen].astype(float)
        lanes = kernels.lanes()
        padded = np.zeros((-(-len(chosen) // lanes) * lanes, self.lines.shape[1]))
        padded[: len(chosen)] = self.lines[chosen]
        padded[: len(chosen), n_a:-1] *= np.sqrt(weight)[:, None]
        padded[: len(chosen), -1] = weight
        packed = np.ascontiguousarray(padded.reshape(-1, lanes, padded.shape[1]).transpose(0, 2, 1))
        within = np.ascontiguousarray(counts @ self.within)
        n, m = int(counts @ self.sizes), int(counts.sum())
        if n <= m * structure.q:
            # what tells the parameters apart, if anything does, is seen in the rows
            if self._by_rows is None:
                self._by_rows = _Clusters(self.result, "")
            return self._by_rows.fit(counts)
        self._check_rank(padded[:, n_a:-1].reshape(-1, structure.q, r + 1)[:, :, :r], within)
        rows, columns = structure.positions
        criterion = kernels.ClusterCriterion(packed, within, n, structure.q, r + 1, rows, columns, False)
        criterion.reml = self.result.reml
        start = moment_start(criterion, structure, n, m, float(within[-1]))
        optimum = optimize(criterion, structure, np.full(structure.q, float(m)), n, start)
        beta, r2, chol, _ = criterion.solution()
        sigma2 = problem.scale**2 * r2 / (n - r if self.result.reml else n)
        params = np.full(model.exog.shape[1], np.nan)
        errors = params.copy()
        params[problem.kept] = (problem.beta_base + problem.scale * (problem.x_map @ beta))[problem.kept]
        half = np.linalg.solve(chol, problem.x_map.T)
        errors[problem.kept] = np.sqrt(sigma2 * np.sum(half**2, axis=0))[problem.kept]
        factor = problem.z_map @ optimum.factor
        return params, errors, sigma2 * (factor @ factor.T), sigma2, optimum.converged, optimum.singular

    def _check_rank(self, c: Array, within: Array) -> None:
        """Refuse a resample in which columns of X_o depend on each other: X_o'X_o is c'c and the part within groups."""
        r = c.shape[2]
        gram = kernels.unpack(within, r + 1)[:r, :r] + np.tensordot(c, c, axes=((0, 1), (0, 1)))
        size = np.sqrt(np.diag(gram))
        if not size.all() or (r and np.linalg.eigvalsh(gram / np.outer(size, size))[0] < DEPENDENT):
            raise LMMError("the resample does not determine all coefficients")


class _Clusters:
    """`_Cases` for several grouping factors: refits to the rows of clusters that share no level of any factor."""

    def __init__(self, result: Fit, why: str) -> None:
        self.result = result
        try:
            self.units = independent_units(result.model.design, why)
        except LMMError as error:
            raise LMMError(f"{error}; use kind='parametric'") from None

    def refit(self, counts: NDArray[np.int64]) -> Fit:
        """The fit with cluster i counted counts[i] times."""
        base = self.result.model
        rows, codes = self.units.copies(np.repeat(np.arange(len(counts)), counts))
        model = base.of(base.design.rows(rows, codes), base.endog[rows])
        if len(model.problem.kept) < len(base.problem.kept):
            raise LMMError("the resample does not determine all coefficients")
        return self.result.again(model)

    def fit(self, counts: NDArray[np.int64]) -> tuple[Array, Array, Array, float, bool, bool]:
        """Params, standard errors, G, sigma2, converged, singular with cluster i counted counts[i] times."""
        fit = self.refit(counts)
        errors = np.sqrt(np.diag(fit.cov))
        return fit.beta, errors, fit.covariance, fit.sigma2, fit.converged, fit.singular


def refits(
    cases: _Cases | _Clusters, counts: NDArray[np.int64], bar: Any = None
) -> tuple[Array, Array, Array, Array, NDArray[np.bool_]]:
    """Fits for each row of counts, flags as columns; NaN where a resample cannot be fitted."""
    model = cases.result.model
    size, p, q = len(counts), model.exog.shape[1], model.structure.q
    params, errors = np.full((size, p), np.nan), np.full((size, p), np.nan)
    covariance, sigma2 = np.full((size, q, q), np.nan), np.full(size, np.nan)
    flags = np.zeros((size, 2), dtype=bool)
    for i, row in enumerate(counts):
        try:
            params[i], errors[i], covariance[i], sigma2[i], *flags[i] = cases.fit(row)
        except LMMError:
            # e.g. too few different groups were drawn for the columns of X
            continue
        finally:
            if bar is not None:
                bar.update(1)
    return params, errors, covariance, sigma2, flags


def cases_of(result: Fit, why: str) -> tuple[_Cases | _Clusters, int]:
    """What refits resamples of the independent groups, and how many of these there are."""
    model = result.model
    if len(model.factors) == 1 and model.residual is None and not model.structure.restricted:
        return _Cases(result), model.problem.m
    return clusters_of(result, why)


def clusters_of(result: Fit, why: str) -> tuple[_Clusters, int]:
    """What refits resamples of the independent clusters by their rows, and how many of these there are."""
    clusters = _Clusters(result, why)
    return clusters, len(clusters.units)


def refitted(clusters: _Clusters, counts: NDArray[np.int64]) -> Fit | None:
    """The fit with cluster i counted counts[i] times; None where there is none."""
    try:
        return clusters.refit(counts)
    except LMMError:
        return None


def rescaled(u: Array, factor: Array) -> Array:
    """Effects Lambda u of groups (m, q), centred and given the covariance Lambda Lambda' in the directions that vary.

    Parameters
    ----------
    u : (m, q) array
    factor : (q, q) array
        Lambda.
    """
    u = u - u.mean(axis=0)
    live = np.linalg.norm(factor, axis=0) > 0.0
    values, vectors = np.linalg.eigh(u[:, live].T @ u[:, live] / len(u))
    keep = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
    root = np.where(keep, 1.0 / np.sqrt(np.where(keep, values, 1.0)), 0.0)
    return np.asarray(u[:, live] @ (vectors * root) @ vectors.T @ factor[:, live].T)


def without_groups(result: Fit) -> Array:
    """All parameters without each of the independent groups (m, k)."""
    cases, m = cases_of(result, "method='bca' needs deletions of independent groups")
    params, _, covariance, sigma2, _ = refits(cases, 1 - np.eye(m, dtype=np.int64))
    return parameters_of_fits(result.model, params, covariance, sigma2)

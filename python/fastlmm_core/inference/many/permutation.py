"""Permutation tests of many responses: the same permutation for all of them, a map of statistics for each permutation.

The residuals of each response from its fit under the null hypothesis are rearranged and take the place of the response
(Freedman and Lane 1983, J. Bus. Econ. Stat. 1, 292-298; Winkler et al. 2014, NeuroImage 92, 381-397).  What may be
exchanged depends on the errors: within blocks, blocks as a whole or signs of blocks (Winkler et al. 2015, NeuroImage
123, 253-268), or all observations once the random effects are taken out by a root of V at the estimates under the null
hypothesis (Lee and Braun 2012, Biometrics 68, 486-493).  What the null hypothesis leaves of the mean is part of X in
both models, and does not change the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...estimation.many.batch_fit import BatchFit
from ...estimation.many.one_factor import shared_design
from ...estimation.many.pieces import fit_many
from ...estimation.model import Model
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.seeds import Seed
from ...support.text_tables import p_value_cell
from ...support.threads import map_in_threads, thread_count
from ...support.types import Array
from ..hypotheses import Hypothesis, parse_hypothesis
from ..wald import check_estimable, independent_rows
from .rearrangements import Rearrangement, block_codes, check_scheme, rearrangements
from .structured_permutation import Solved, StructuredRoots
from .symmetric_roots import GroupRoots, SharedRoots, SymmetricRoots

if TYPE_CHECKING:
    from ...kernels import BatchDesign
    from ...kernels.hierarchies import CorrelatedBatch, FactorBatch

__all__ = ["STACK", "Permutations", "Reduce", "null_space", "permute", "permuted"]

Reduce = Callable[[Array], Any]


STACK = 2**21
"""Numbers in the responses that are made at a time."""


@checked
@dataclass(frozen=True, repr=False)
class Permutations(Shown):
    """A permutation test of many responses.

    Attributes
    ----------
    statistic : (n_responses,) array
        t of one row, else F; the map of the data.  NaN for responses that could not be fitted.
    pvalues : (n_responses,) array
        (1 + permutations with a statistic as large) / (1 + permutations), by the absolute value; not adjusted for the
        number of responses.
    observed : float or array
        What `reduce` made of the map of the data; by default its largest absolute value.
    null : (n,) or (n, ...) array
        What it made of each permutation.
    scheme : str
    n : int
        Permutations.
    """

    statistic: Array
    pvalues: Array
    observed: Any
    null: Array
    scheme: str
    n: int
    _own: bool = field(repr=False)

    def __len__(self) -> int:
        return len(self.statistic)

    def familywise(self, values: Any = None) -> Array:
        """p-values of values on the scale of the null distribution: (1 + draws as large) / (1 + n).

        Parameters
        ----------
        values : array, optional
            By default the absolute statistic of every response, so that all are tested with a family-wise error rate:
            the null distribution is that of the largest.  Give the masses of clusters, for example, where `reduce`
            returns the largest mass.

        Raises
        ------
        LMMError
            For the default where `reduce` was the caller's, or where it returned several numbers.
        """
        if self.null.ndim != 1:
            raise LMMError("reduce returned several numbers: compare each column of `null` by itself")
        if values is None and not self._own:
            raise LMMError("the null distribution is that of your reduce: give values that are comparable with it")
        found = np.abs(self.statistic) if values is None else np.asarray(values, dtype=float)
        drawn = np.sort(self.null)
        slack = 1e-10 * (1.0 + np.abs(found))
        below = np.searchsorted(drawn, found - slack).astype(np.float64)
        return np.where(np.isnan(found), np.nan, (1.0 + self.n - below) / (1.0 + self.n))

    @property
    def pvalue(self) -> float:
        """Of the observed value of `reduce`, for all responses together."""
        return float(self.familywise(np.array([self.observed]))[0])

    def _shown(self) -> Iterator[str | Cells]:
        yield f"Permutation test ({self.scheme}, {self.n:,} permutations) of {len(self):,} responses"
        yield Cells(["", ""], [["p < 0.05, response by response", str(int((self.pvalues < 0.05).sum()))]])
        if self.null.ndim == 1:
            yield f"All together: p {p_value_cell(self.pvalue)}"

    def __repr__(self) -> str:
        return f"<Permutations: {self.scheme}, {self.n} of {len(self)} responses>"


def permute(
    batch: BatchFit, hypothesis: Any, n: int, scheme: str, blocks: Any, *, reduce: Reduce | None, refit: bool,
    seed: Seed, n_jobs: int | None,
) -> Permutations:  # fmt: skip
    """See `BatchResult.permute`."""
    check_scheme(scheme, n)
    model = batch.model
    model.needs_free_covariances("permute()")
    model.needs_unknown_variance("permute()", "leave sigma out")
    if not (_in_lanes(model) or refit or model.residual is not None):
        raise LMMError(
            "permute() of several grouping factors with many levels, or with more than four effects of a level, needs "
            "refit=True: the variances are then estimated for each permutation"
        )
    if batch.responses is None:
        raise LMMError(f"{batch.gone}: fit an array to permute it")
    parsed = parse_hypothesis(hypothesis, model.exog_names)
    check_estimable(model, parsed.L, parsed.names)
    parsed = parse_hypothesis(parsed.L, model.exog_names, parsed.rhs)
    under = _Null(batch, parsed, scheme == "freedman-lane", thread_count(n_jobs))
    codes = _codes(model, scheme, blocks)
    make = rearrangements(scheme, model.nobs, codes, seed)

    def maps(numbers: range) -> Array:
        stack = [make(i) for i in numbers]
        return under.statistic(np.concatenate([under.rearranged(one) for one in stack]), refit, len(stack))

    observed = under.statistic(under.same(), refit, 1)[0]
    return permuted(observed, maps, n, max(1, STACK // (len(batch) * model.nobs)), reduce, scheme)


def permuted(
    observed: Array, maps: Callable[[range], Array], n: int, size: int, reduce: Reduce | None, scheme: str
) -> Permutations:
    """Compare the map of the data with those of n permutations, made `size` at a time."""
    value = (lambda found: np.nanmax(np.abs(found), initial=0.0)) if reduce is None else reduce
    of_data = value(observed)
    counts, drawn = np.zeros(len(observed), dtype=np.intp), []
    limit = np.abs(observed) * (1.0 - 1e-10)
    for begin in range(0, n, size):
        for own in maps(range(begin, min(begin + size, n))):
            counts += np.abs(own) >= limit
            drawn.append(value(own))
    pvalues = np.where(np.isnan(observed), np.nan, (1.0 + counts) / (1.0 + n))
    return Permutations(observed, pvalues, of_data, _stacked(drawn), scheme, n, reduce is None)


def _in_lanes(model: Model) -> bool:
    """Whether responses are looked at side by side: one factor, or several of independent effects."""
    return len(model.factors) == 1 or hasattr(shared_design(model), "moments")


def _stacked(drawn: list[Any]) -> Array:
    try:
        return np.array(drawn, dtype=float)
    except (TypeError, ValueError):
        raise LMMError("reduce must return a number, or the same number of them each time") from None


def _codes(model: Model, scheme: str, blocks: Any) -> NDArray[np.intp] | None:
    """Blocks of the observations: given, or the groups of the coarsest factor; all of them where V is taken out."""
    if blocks is None:
        if scheme == "freedman-lane":
            return None
        if not model.factors:
            assert model.residual is not None
            return np.asarray(np.unique(model.residual.subject.codes, return_inverse=True)[1].reshape(-1))
        return np.asarray(model.factors[-1].grouping.index)
    return block_codes(model.design, blocks)


class _Null:
    """The fits under the null hypothesis, and statistics of what takes the place of the responses."""

    def __init__(self, batch: BatchFit, parsed: Hypothesis, whitened: bool, jobs: int) -> None:
        self.batch, self.model, self.jobs = batch, batch.model, jobs
        model, problem = batch.model, batch.model.problem
        self.L, self.rank = parsed.L, len(independent_rows(parsed.L @ problem.x_map, parsed.rhs, parsed.names)[0])
        self.rows = np.ascontiguousarray(parsed.L @ problem.x_map)
        kept = problem.kept
        null = null_space(parsed.L[:, kept])
        beta0 = np.zeros(model.exog.shape[1])
        beta0[kept] = np.linalg.lstsq(parsed.L[:, kept], parsed.rhs, rcond=None)[0]
        X = model.exog[:, kept] @ null
        design = model.design.columns(np.zeros(0, dtype=np.intp)).with_columns(
            X, tuple(f"null {j}" for j in range(X.shape[1]))
        )
        self.moved = model.exog @ beta0
        Y = batch.fitted_responses(np.arange(len(batch))) - self.moved
        reduced = model.of(design, None).fittable()
        fits = _fitted(reduced, batch, Y, jobs)
        self.lost = fits.status < 0
        fitted = np.nan_to_num(fits.params) @ X.T
        self.offset = np.zeros(model.nobs) if model.offset is None else model.offset
        self.root = model.root_weights
        e = (Y - fitted - self.offset) * self.root
        e[self.lost] = 0.0
        # Lambda under the null hypothesis, in the coordinates of this design
        factor = fits.relative_factor
        factor[self.lost] = 0.0
        inner = np.linalg.solve(problem.z_map, factor)
        structure = model.structure
        self.theta = np.array([structure.theta(structure.canonical(one)) for one in inner])
        self.theta = np.ascontiguousarray(self.theta.reshape(len(batch), structure.n_parameters))
        self.whitening: SymmetricRoots | StructuredRoots | None = None
        self.roots = None if model.residual is None else StructuredRoots(fits, self.lost)
        if whitened and self.roots is not None:
            self.whitening = self.roots
        elif whitened:
            self.whitening = (GroupRoots if len(model.factors) == 1 else SharedRoots)(model, factor)
        self.e = e if self.whitening is None else self.whitening.out(e)
        self.kept_e = e

    def same(self) -> Array:
        """The residuals as they are, in place of the responses."""
        return np.asarray(self.kept_e / self.root + self.offset)

    def rearranged(self, one: Rearrangement) -> Array:
        """What takes the place of the responses (n_responses, n)."""
        found = one.of(self.e)
        if self.whitening is not None:
            found = self.whitening.into(found)
        return np.asarray(found / self.root + self.offset)

    def statistic(self, Y: Array, refit: bool, count: int) -> Array:
        """Maps (count, n_responses) of t or F."""
        n = len(self.batch)
        if refit:
            fits = _fitted(self.model, self.batch, Y, self.jobs)
            params, sigma2, theta = fits.params, fits.sigma2, fits.theta_o
        else:
            theta = np.tile(self.theta, (count, 1))
        if refit and len(self.L) == 1 and np.count_nonzero(self.L) == 1:
            j = int(np.flatnonzero(self.L[0])[0])
            found = fits.params[:, j] / fits.bse[:, j] * np.sign(self.L[0, j])
        elif self.roots is not None and not refit:
            params, sigma2, covariance = self._at_roots(self.roots, Y)
            found = self._of(params, sigma2, covariance)
        elif self.roots is not None or not _in_lanes(self.model):
            raise LMMError(
                "permute(refit=True) with structured residuals, and of several grouping factors with many levels, "
                "tests one coefficient by its name"
            )
        else:
            params, sigma2, covariance = self._solved(Y, theta)
            found = self._of(params, sigma2, covariance)
        out = np.where(np.tile(self.lost, count), np.nan, found)
        return out.reshape(count, n)

    def _of(self, params: Array, sigma2: Array, covariance: Array) -> Array:
        gap = np.nan_to_num(params) @ self.L.T
        with np.errstate(invalid="ignore", divide="ignore"):
            if len(self.L) == 1:
                return np.asarray(gap[:, 0] / np.sqrt(sigma2 * covariance[:, 0, 0]))
            values, vectors = np.linalg.eigh(covariance)
            along = np.einsum("nir,ni->nr", vectors, gap)[:, -self.rank :]
            return np.asarray((along**2 / values[:, -self.rank :]).sum(axis=1) / (self.rank * sigma2))

    def _at_roots(self, roots: StructuredRoots, Y: Array) -> Solved:
        """Coefficients, sigma^2 and K at the parameters under the null hypothesis."""
        model, kept = self.model, self.model.problem.kept
        nu = float(model.df_resid if self.batch.reml else model.nobs)
        y = (Y - self.offset) * self.root
        found = roots.solve(model.exog[:, kept] * self.root[:, None], y, self.L[:, kept], nu)
        params = np.zeros((len(Y), model.exog.shape[1]))
        params[:, kept] = found.params
        return found._replace(params=params)

    def _solved(self, Y: Array, theta: Array) -> tuple[Array, Array, Array]:
        """Coefficients, sigma^2 and K at theta."""
        shared: BatchDesign | FactorBatch | CorrelatedBatch = shared_design(self.model)  # type: ignore[assignment]
        n, p = len(Y), self.model.exog.shape[1]
        params, bse, sigma2 = np.empty((n, p)), np.empty((n, p)), np.empty(n)
        covariance = np.empty((n, len(self.rows), len(self.rows)))
        size = -(-n // (8 * self.jobs)) * 8

        def run(begin: int) -> None:
            part = slice(begin, begin + size)
            coefficients = params[part], bse[part], sigma2[part]
            found = shared.contrasts(
                np.ascontiguousarray(Y[part]), self.batch.reml, np.ascontiguousarray(theta[part]), self.rows,
                coefficients=coefficients,
            )  # fmt: skip
            covariance[part] = found[0]

        map_in_threads(run, ((begin,) for begin in range(0, n, size)), self.jobs)
        return params, sigma2, covariance


def _fitted(model: Model, batch: BatchFit, Y: Array, jobs: int) -> BatchFit:
    Y.setflags(write=False)
    return fit_many(lambda count, _: BatchFit(model, batch.kind, batch.reml, count, None), Y, jobs, False)


def null_space(L: Array) -> Array:
    """Orthonormal columns (p, p - rank) with L columns = 0."""
    size = np.linalg.norm(L, axis=0)
    _, values, vectors = np.linalg.svd(L)
    rank = int((values > 1e-10 * max(values.max(initial=0.0), 1e-300)).sum()) if size.any() else 0
    return np.asarray(vectors[rank:].T)

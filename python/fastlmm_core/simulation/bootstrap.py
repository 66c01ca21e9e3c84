"""Bootstrap of a fit: replicates, standard errors, bias and intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.elements import element_names, sd_and_cor
from ..design.replication import independent_units
from ..engines.one_factor.problem import one_factor
from ..engines.starts import moment_start
from ..errors import LMMError
from ..estimation.deletion.contributions import conditioned_rows, within_groups
from ..estimation.optimize import optimize
from ..support.arguments import checked
from ..support.checks import check_count, check_level, float_array, plain_array
from ..support.display import Cells, Shown, first_lines
from ..support.distributions import quantile
from ..support.progress import progress_bar
from ..support.seeds import Seed, beside, check_first, key_of
from ..support.text_tables import aligned_cells, estimate_cells
from ..support.threads import thread_count
from ..support.words import option
from ..tables.columns import native_frame
from ..tables.rows import limits_table
from .draws import Draw, draws, parametric, simulate_fit, stream_size

if TYPE_CHECKING:
    from ..engines.crossed.engine import CrossedCriterion
    from ..engines.crossed.problem import CrossedProblem
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["BootstrapResult", "bootstrap"]

Array = NDArray[np.float64]

DEPENDENT = 1e-10
"""Smallest eigenvalue of the correlations of X in a resample below which its columns depend on each other."""


@checked
@dataclass(frozen=True, repr=False)
class BootstrapResult(Shown):
    """Replicates of a bootstrap; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    names : tuple of str
        Of the statistics.
    estimate : (k,) array
        At the original fit.
    replicates : (n, k) array
        NaN where a replicate could not be fitted.
    replicate_std_error : (n, k) array or None
        Of each replicate's statistics, NaN where there is none; needed for studentised intervals.
    fit_std_error : (k,) array or None
        Standard errors of the original fit.
    singular, converged : (n,) bool arrays
    kind : str
    """

    names: tuple[str, ...]
    estimate: Array
    replicates: Array
    replicate_std_error: Array | None
    fit_std_error: Array | None
    singular: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    kind: str
    _fit: Fit = field(repr=False)

    @property
    def _library(self) -> str | None:
        """Of labelled limits; None for a model from arrays."""
        model = self._fit.model
        return model.library if model.design.labelled else None

    @property
    def std_error(self) -> Array:
        """Bootstrap standard errors (k,)."""
        return np.asarray(np.nanstd(self.replicates, axis=0, ddof=1))

    @property
    def bias(self) -> Array:
        """Mean of the replicates less the estimate (k,)."""
        return np.asarray(np.nanmean(self.replicates, axis=0) - self.estimate)

    @property
    def singular_fraction(self) -> float:
        """Share of replicates on the boundary."""
        return float(np.mean(self.singular))

    def conf_int(
        self,
        level: float = 0.95,
        method: Literal["percentile", "basic", "normal", "bca", "studentized"] = "percentile",
    ) -> Any:
        """Bootstrap intervals (Davison and Hinkley 1997, Bootstrap Methods and their Application, ch. 5).

        Parameters
        ----------
        level : float
        method : {"percentile", "basic", "normal", "bca", "studentized"}
            "bca" corrects for bias and acceleration, the latter by deletion of each group; "studentized" needs
            standard errors, which exist for fixed effects.

        Returns
        -------
        frame, or (k, 2) array for a model from arrays
            Columns conf_low, conf_high, with the names of the statistics; NaN where a method does not apply.

        Raises
        ------
        LMMError
            For an unknown method or level, or where no statistic has standard errors.
        """
        check_level(level)
        tails = np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level])
        return limits_table(self._library, self.names, self._limits(tails, method))

    def _limits(self, tails: Array, method: str) -> Array:
        """Bounds (k, 2) with these probabilities below them."""
        values, estimate = self.replicates, self.estimate
        if method == "percentile":
            return np.asarray(np.nanquantile(values, tails, axis=0).T)
        if method == "basic":
            low, high = np.nanquantile(values, tails, axis=0)
            return np.column_stack([2.0 * estimate - high, 2.0 * estimate - low])
        if method == "normal":
            half = float(quantile(tails[1], None)) * self.std_error
            centre = estimate - self.bias
            return np.column_stack([centre - half, centre + half])
        if method == "studentized":
            if self.replicate_std_error is None or self.fit_std_error is None:
                raise LMMError("method='studentized' needs standard errors, which a user's statistic does not have")
            out = np.full((len(estimate), 2), np.nan)
            for j in np.flatnonzero(np.isfinite(self.fit_std_error)):
                t = (values[:, j] - estimate[j]) / self.replicate_std_error[:, j]
                low, high = np.nanquantile(t, tails)
                out[j] = estimate[j] - np.array([high, low]) * self.fit_std_error[j]
            return out
        if method == "bca":
            return self._bca(tails)
        raise LMMError(f"method={method!r} is unknown: use 'percentile', 'basic', 'normal', 'bca' or 'studentized'")

    def _bca(self, tails: Array) -> Array:
        """Efron 1987, J. Am. Statist. Assoc. 82, eq. 2.3 and 6.6."""
        from scipy.special import ndtr, ndtri

        if self.fit_std_error is None:
            raise LMMError("method='bca' needs deletions of groups, which a user's statistic does not have")
        deleted = _without_groups(self._fit)
        centred = np.nanmean(deleted, axis=0) - deleted
        with np.errstate(invalid="ignore", divide="ignore"):
            acceleration = np.nansum(centred**3, axis=0) / (6.0 * np.nansum(centred**2, axis=0) ** 1.5)
        out = np.full((len(self.estimate), 2), np.nan)
        for j, estimate in enumerate(self.estimate):
            values = self.replicates[:, j]
            values = values[np.isfinite(values)]
            # ties (variances of zero) count half
            below = (np.sum(values < estimate) + 0.5 * np.sum(values == estimate)) / max(len(values), 1)
            if not 0.0 < below < 1.0 or not np.isfinite(acceleration[j]):
                continue
            z0 = ndtri(below)
            z = z0 + ndtri(tails)
            out[j] = np.quantile(values, ndtr(z0 + z / (1.0 - acceleration[j] * z)))
        return out

    def join(self, *others: BootstrapResult) -> BootstrapResult:
        """These replicates and those of other parts of the run, made with other values of ``first=``.

        Parameters
        ----------
        *others : BootstrapResult
            Of the same fit, by the same kind of bootstrap.

        Returns
        -------
        BootstrapResult
            In the order given.

        Raises
        ------
        LMMError
            For parts of another fit, kind or statistic.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> parts = [fit.bootstrap(50, seed=1, first=first) for first in (0, 50)]
        >>> len(parts[0].join(parts[1]))
        100
        """
        parts = (self, *others)
        for place, part in enumerate(others, start=1):
            if not isinstance(part, BootstrapResult):
                raise LMMError(f"join(): argument {place} is a {type(part).__name__}, not a BootstrapResult")
            same = part.kind == self.kind and part.names == self.names
            if not (same and np.array_equal(part.estimate, self.estimate, equal_nan=True)):
                raise LMMError(f"join(): argument {place} belongs to another fit, kind of bootstrap or statistic")
        errors = [part.replicate_std_error for part in parts]
        return replace(
            self,
            replicates=np.concatenate([part.replicates for part in parts]),
            replicate_std_error=None if self.replicate_std_error is None else np.concatenate(cast("Any", errors)),
            singular=np.concatenate([part.singular for part in parts]),
            converged=np.concatenate([part.converged for part in parts]),
        )

    def to_frame(self) -> Any:
        """The replicates, one column per statistic, in the library of the model's data (or a dict of arrays)."""
        return native_frame(self._library or "dict", {name: self.replicates[:, j] for j, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.replicates)

    def _shown(self) -> Iterator[str | Cells]:
        yield (
            f"{self.kind.capitalize()} bootstrap: {len(self):,} replicates, {100.0 * self.singular_fraction:.1f} % "
            f"singular, {int((~self.converged).sum())} not certified"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # correlations that no replicate has are NaN
            error, bias = self.std_error, self.bias
            limits = self._limits(np.array([0.025, 0.975]), "percentile")
        columns = [estimate_cells(values.tolist(), error.tolist(), 3) for values in (self.estimate, bias, *limits.T)]
        cells = zip(self.names, columns[0], aligned_cells([f"{e:.3g}" for e in error]), *columns[1:], strict=True)
        yield Cells(["", "Estimate", "SE", "Bias", "2.5 %", "97.5 %"], first_lines([list(row) for row in cells], 50))


def _parameter_names(model: Model) -> tuple[str, ...]:
    return (*(model.exog_names[i] for i in model.problem.kept), *element_names(model.random.elements))


def _parameters(model: Model, params: Array, covariance: Array, sigma2: Array) -> Array:
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

    def fit(self, counts: NDArray[np.int64]) -> tuple[Array, Array, Array, float, bool, bool]:
        """Params, standard errors, G, sigma2, converged, singular with cluster i counted counts[i] times."""
        base = self.result.model
        rows, codes = self.units.copies(np.repeat(np.arange(len(counts)), counts))
        model = base.of(base.design.rows(rows, codes), base.endog[rows])
        if len(model.problem.kept) < len(base.problem.kept):
            raise LMMError("the resample does not determine all coefficients")
        fit = self.result.again(model)
        errors = np.sqrt(np.diag(fit.cov))
        return fit.beta, errors, fit.covariance, fit.sigma2, fit.converged, fit.singular


def _refits(
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


def _conditional(result: Fit) -> Draw:
    model = result.model
    mean = result.fitted_mean
    scale = result.sigma if model.weights is None else result.sigma / np.sqrt(model.weights)

    def draw(rng: np.random.Generator, count: int) -> Array:
        return mean + scale * rng.standard_normal((count, model.nobs))

    return draw


def _residual(result: Fit) -> Draw:
    """BLUPs and residuals, centred and rescaled to the estimated covariances, drawn with replacement.

    The BLUPs are G Z_i'V_i^-1 r_i = Lambda u_i; it is u_i, in the directions that have variance, that is given the unit
    covariance which shrinkage has taken away.
    """
    model = result.model
    Z = model.exog_re
    pools = [(b, f.grouping.index, Z[:, f.columns]) for b, f in zip(_effect_pools(result), model.factors, strict=True)]
    w = np.ones(model.nobs) if model.weights is None else np.sqrt(model.weights)
    e = result.rest * w
    e = e - e.mean()
    e *= result.sigma / np.sqrt(np.mean(e**2))
    mean = result.marginal_mean

    def draw(rng: np.random.Generator, count: int) -> Array:
        streams = [beside(rng, place + 1) for place in range(len(pools))]
        y = e[rng.integers(0, model.nobs, (count, model.nobs))] / w
        for own, (b, index, z) in zip(streams, pools, strict=True):
            u = b[own.integers(0, len(b), (count, len(b)))]
            for j in range(z.shape[1]):
                y += u[:, :, j].take(index, axis=1) * z[:, j]
        return np.asarray(y + mean)

    return draw


def _effect_pools(result: Fit) -> list[Array]:
    """Random effects of each factor (m_f, q_f) from which to draw: of mean 0 and the estimated covariance."""
    model, problem = result.model, result.model.problem
    residual = np.append(-result.solution.beta, 1.0)
    if len(model.factors) == 1:
        packed = one_factor(problem).unpatterned()
        scores = [kernels.group_effects(packed, problem.m, result.optimum.factor, residual)[0]]
    else:
        criterion = problem.criterion()
        criterion.evaluate(result.optimum.theta, 1)
        every = cast("CrossedCriterion", criterion).scores() @ residual
        scores = [every[places] for places in cast("CrossedProblem", problem).layout.places]
    out = []
    for e_i, f in zip(scores, model.factors, strict=True):
        factor = result.optimum.factor[f.columns, f.columns]
        u = e_i @ factor
        u -= u.mean(axis=0)
        live = np.linalg.norm(factor, axis=0) > 0.0
        values, vectors = np.linalg.eigh(u[:, live].T @ u[:, live] / len(u))
        keep = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
        root = np.where(keep, 1.0 / np.sqrt(np.where(keep, values, 1.0)), 0.0)
        turn = problem.z_map[f.columns, f.columns] @ factor[:, live]
        out.append(result.sigma * u[:, live] @ (vectors * root) @ vectors.T @ turn.T)
    return out


def _cases(result: Fit, why: str) -> tuple[_Cases | _Clusters, int]:
    """What refits resamples of the independent groups, and how many of these there are."""
    if len(result.model.factors) == 1:
        return _Cases(result), result.model.problem.m
    clusters = _Clusters(result, why)
    return clusters, len(clusters.units)


def _without_groups(result: Fit) -> Array:
    """All parameters without each of the independent groups (m, k)."""
    cases, m = _cases(result, "method='bca' needs deletions of independent groups")
    params, _, covariance, sigma2, _ = _refits(cases, 1 - np.eye(m, dtype=np.int64))
    return _parameters(result.model, params, covariance, sigma2)


def bootstrap(
    result: Fit, n: int, kind: str, statistic: Callable[[Fit], Any] | None,
    seed: Seed, n_jobs: int | None, progress: bool | None, first: int = 0,
) -> BootstrapResult:  # fmt: skip
    """See `LMMResult.bootstrap`."""
    check_count(n, "n", 2)
    check_first(first, seed)
    model = result.model
    model.needs_independent_residuals("bootstrap()")
    thread_count(n_jobs)

    def all_parameters(params: Array, covariance: Array, sigma2: Array) -> Array:
        return _parameters(model, params, covariance, sigma2)

    if kind == "cases":
        if statistic is not None:
            raise LMMError("statistic= needs responses, which kind='cases' does not have; use another kind")
        cases, m = _cases(result, "kind='cases' needs independent groups to resample")

        def resample(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
            return rng.multinomial(m, np.full(m, 1.0 / m), size=count)

        counts = np.concatenate([block() for block in draws(resample, n, key_of(seed), first=first)])
        bar = progress_bar(progress, n)
        params, errors, covariance, sigma2, flags = _refits(cases, counts, bar)
        converged, singular = flags.T
        if bar is not None:
            bar.close()
    else:
        makers: dict[str, Callable[[Fit], Draw]] = {
            "parametric": parametric,
            "conditional": _conditional,
            "residual": _residual,
        }
        if kind not in makers:
            near = option("kind of bootstrap", kind, (*makers, "cases"))
            raise LMMError(f"kind={kind!r} is unknown: use 'parametric', 'conditional', 'residual' or 'cases'{near}")
        draw = makers[kind](result)
        if statistic is not None:
            return _user_statistic(result, n, kind, statistic, draw, seed, first)
        batch = simulate_fit(
            result, n, seed, reml=result.reml, n_jobs=n_jobs, progress=progress, draw=draw, first=first
        )
        params, errors, sigma2 = batch.params, batch.bse, batch.sigma2
        covariance = batch.covariance
        converged, singular = batch.converged, batch.singular
    own = all_parameters(result.beta[None], result.covariance[None], np.array([result.sigma2]))[0]
    kept = model.problem.kept
    extra = len(own) - len(kept)
    return BootstrapResult(
        names=_parameter_names(model),
        estimate=own,
        replicates=all_parameters(params, covariance, sigma2),
        replicate_std_error=np.column_stack([errors[:, kept], np.full((n, extra), np.nan)]),
        fit_std_error=np.append(np.sqrt(np.diag(result.cov))[kept], np.full(extra, np.nan)),
        singular=singular,
        converged=converged,
        kind=kind,
        _fit=result,
    )


def _named_numbers(found: Any) -> tuple[tuple[str, ...], Array]:
    """Names and values of what a user's statistic returned: a dict, a Series of pandas, an array or a number."""
    if found is None:
        raise LMMError("statistic returned nothing; it must return a number, an array, or numbers by name")
    if hasattr(found, "keys"):
        names = [str(name) for name in found.keys()]  # noqa: SIM118 - a Series iterates over its values
        found = list(found.values()) if isinstance(found, Mapping) else found
    else:
        names = None
    values = np.atleast_1d(plain_array(found, "statistic"))
    if values.ndim != 1:
        raise LMMError(
            f"statistic returned an array of shape {values.shape}; return numbers by name, or one row of them"
        )
    values = float_array(values, "statistic", 1)
    return tuple(f"statistic_{i}" for i in range(len(values))) if names is None else tuple(names), values


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "") or "nothing"


def _user_statistic(
    result: Fit, n: int, kind: str, statistic: Callable[[Fit], Any], draw: Draw, seed: Seed, first: int
) -> BootstrapResult:  # fmt: skip
    names, own = _named_numbers(statistic(result))
    values = np.full((n, len(own)), np.nan)
    converged, singular = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    at = 0
    for block in draws(draw, n, key_of(seed), stream_size(result.nobs), first):
        for y in block():
            fit = result.again(result.model.with_response(y))
            again, values_of = _named_numbers(statistic(fit))
            if again != names:
                raise LMMError(
                    f"statistic returned {_listed(again)} for replicate {at} and {_listed(names)} for the fit itself; "
                    "it must return the same numbers each time"
                )
            values[at] = values_of
            converged[at], singular[at] = fit.converged, fit.singular
            at += 1

    return BootstrapResult(
        names=names,
        estimate=own,
        replicates=values,
        replicate_std_error=None,
        fit_std_error=None,
        singular=singular,
        converged=converged,
        kind=kind,
        _fit=result,
    )

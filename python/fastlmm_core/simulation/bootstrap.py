"""Bootstrap of a fit: replicates, standard errors, bias and intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.elements import element_names
from ..design.streamed import refuse_rows
from ..engines.one_factor.problem import one_factor
from ..errors import LMMError
from ..support.arguments import checked, outside
from ..support.checks import check_count, check_level, float_array, plain_array
from ..support.display import Cells, Shown, first_lines
from ..support.hints import option
from ..support.progress import progress_bar
from ..support.seeds import Seed, beside, check_first, key_of, stream
from ..support.text_tables import aligned_cells, estimate_cells
from ..support.threads import thread_count
from ..support.types import Array
from ..tables.columns import native_frame
from ..tables.rows import limits_table
from . import structured
from .draws import Draw, draws, parametric, simulate_fit, stream_size
from .intervals import Method, Sample, limits
from .resampling import cases_of, clusters_of, parameters_of_fits, refits, refitted, rescaled, without_groups

if TYPE_CHECKING:
    from ..engines.crossed.engine import CrossedCriterion
    from ..engines.crossed.problem import CrossedProblem
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["BootstrapResult", "bootstrap"]


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
    kinds : tuple of str
        What each statistic is: "fixed", "sd", "cor", "sigma", "residual" for structured residuals, or "statistic" for
        the caller's own.
    """

    names: tuple[str, ...]
    estimate: Array
    replicates: Array
    replicate_std_error: Array | None
    fit_std_error: Array | None
    singular: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    kind: str
    kinds: tuple[str, ...]
    _fit: Fit = field(repr=False)

    @property
    def library(self) -> str | None:
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
        method: Method = "auto",
        names: str | Sequence[str] | None = None,
    ) -> Any:
        """Bootstrap intervals (Davison and Hinkley 1997, Bootstrap Methods and their Application, ch. 5).

        Parameters
        ----------
        level : float
        method : {"auto", "percentile", "basic", "normal", "bca", "studentized"}
            "studentized" needs standard errors, which exist for fixed effects; "bca" corrects for bias and
            acceleration, the latter by deletion of each independent group, and does not exist for an estimate on the
            boundary; "basic" is refused for standard deviations and correlations, where it covers much too little.
            "auto" takes what covers best: studentised for fixed effects, BCa for standard deviations that are
            estimated inside and whose groups can be deleted (up to 1,000), and percentiles for all others.
            `interval_methods` says which it took.
        names : str or sequence of str, optional
            Statistics wanted, "fixed" or "random" (with sigma); by default all.

        Returns
        -------
        frame, or (k, 2) array for a model from arrays
            Columns conf_low, conf_high, with the names of the statistics; NaN where a method does not apply.

        Raises
        ------
        LMMError
            For an unknown method, level or name, a method that the statistics do not allow, or where no statistic has
            standard errors.

        Warns
        -----
        RuntimeWarning
            For statistics without a BCa interval, with the reason.
        """
        check_level(level)
        wanted = self._places(names)
        found = limits(self._sample(wanted), level, method)
        if found.reasons:
            said = "; ".join(f"{name}, {reason}" for name, reason in found.reasons.items())
            warnings.warn(
                f"no BCa interval: {said}. Percentiles (method='auto') or profile() have one",
                RuntimeWarning,
                stacklevel=outside(),
            )
        return limits_table(self.library, [self.names[j] for j in wanted], found.bounds)

    @cached_property
    def interval_methods(self) -> dict[str, str]:
        """Which method ``conf_int(method="auto")`` takes for each statistic."""
        found = limits(self._sample(range(len(self.names))), 0.95, "auto")
        return dict(zip(self.names, found.methods, strict=True))

    def _places(self, names: str | Sequence[str] | None) -> list[int]:
        """Positions of the statistics wanted."""
        if names is None:
            return list(range(len(self.names)))
        wanted = [names] if isinstance(names, str) else list(names)
        out: list[int] = []
        for name in wanted:
            if name in ("fixed", "random"):
                out += [j for j, kind in enumerate(self.kinds) if (kind == "fixed") == (name == "fixed")]
            elif name in self.names:
                out.append(self.names.index(name))
            else:
                raise LMMError(f"names: there is no {name!r}; use 'fixed', 'random' or some of {', '.join(self.names)}")
        return list(dict.fromkeys(out))

    def _sample(self, wanted: Sequence[int]) -> Sample:
        at = list(wanted)
        errors, replicate_errors = self.fit_std_error, self.replicate_std_error

        def deleted() -> Array:
            fit = self._fit
            without = without_groups if fit.model.residual is None else structured.without_clusters
            found: Array = fit.once("statistics without groups", lambda: without(fit))
            return found[:, at]

        return Sample(
            names=tuple(self.names[j] for j in at),
            kinds=tuple(self.kinds[j] for j in at),
            estimate=self.estimate[at],
            replicates=self.replicates[:, at],
            errors=None if errors is None else errors[at],
            replicate_errors=None if replicate_errors is None else replicate_errors[:, at],
            n_groups=max(f.grouping.m for f in self._fit.model.factors),
            deleted=deleted,
        )

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
        return native_frame(self.library or "dict", {name: self.replicates[:, j] for j, name in enumerate(self.names)})

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
            bounds = limits(self._sample(range(len(self.names))), 0.95, "auto").bounds
        columns = [estimate_cells(values.tolist(), error.tolist(), 3) for values in (self.estimate, bias, *bounds.T)]
        cells = zip(self.names, columns[0], aligned_cells([f"{e:.3g}" for e in error]), *columns[1:], strict=True)
        yield Cells(["", "Estimate", "SE", "Bias", "2.5 %", "97.5 %"], first_lines([list(row) for row in cells], 50))


def _parameter_names(model: Model) -> tuple[str, ...]:
    return (*(model.exog_names[i] for i in model.problem.kept), *element_names(model.random.elements))


def _kinds(model: Model) -> tuple[str, ...]:
    of_g: list[str] = ["sd" if one.i == one.j else "cor" for one in model.random.elements]
    return (*(("fixed",) * len(model.problem.kept)), *of_g, "sigma")


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
    mean = result.population_mean

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
        turn = problem.z_map[f.columns, f.columns]
        out.append(result.sigma * rescaled(e_i @ factor, factor) @ turn.T)
    return out


def bootstrap(
    result: Fit, n: int, kind: str, statistic: Callable[[Fit], Any] | None,
    seed: Seed, n_jobs: int | None, progress: bool | None, first: int = 0,
) -> BootstrapResult:  # fmt: skip
    """See `LMMResult.bootstrap`."""
    check_count(n, "n", 2)
    check_first(first, seed)
    model = result.model
    thread_count(n_jobs)
    if model.design.residual is not None:
        return _structured(result, n, kind, statistic, seed, progress, first)
    if model.streamed:
        return _without_rows(result, n, kind, statistic, seed, progress, first)

    def all_parameters(params: Array, covariance: Array, sigma2: Array) -> Array:
        return parameters_of_fits(model, params, covariance, sigma2)

    if kind == "cases":
        _refuse_statistic(statistic)
        cases, m = cases_of(result, "kind='cases' needs independent groups to resample")
        counts = _resamples(m, n, seed, first)
        bar = progress_bar(progress, n)
        params, errors, covariance, sigma2, flags = refits(cases, counts, bar)
        converged, singular = flags.T
        if bar is not None:
            bar.close()
    else:
        makers: dict[str, Callable[[Fit], Draw]] = {
            "parametric": parametric,
            "conditional": _conditional,
            "residual": _residual,
        }
        _refuse_unknown(kind, makers)
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
        kinds=_kinds(model),
        _fit=result,
    )


def _structured(
    result: Fit, n: int, kind: str, statistic: Callable[[Fit], Any] | None, seed: Seed, progress: bool | None,
    first: int,
) -> BootstrapResult:  # fmt: skip
    """`bootstrap` of a fit with structured residuals, refit by refit."""
    makers: dict[str, Callable[[Fit], Draw]] = {
        "parametric": parametric,
        "conditional": structured.conditional,
        "residual": structured.residual,
    }
    _refuse_unknown(kind, makers)
    own = structured.Parameters(result)
    if kind == "cases":
        _refuse_statistic(statistic)
        clusters, m = clusters_of(result, "kind='cases' needs independent groups to resample")
        counts = _resamples(m, n, seed, first)
        fits: Iterator[Fit | None] = (refitted(clusters, row) for row in counts)
    else:
        draw = makers[kind](result)
        if statistic is not None:
            return _user_statistic(result, n, kind, statistic, draw, seed, first)
        fits = _fits_of(result, n, draw, seed, first)
    values, errors = np.full((n, len(own.names)), np.nan), np.full((n, len(own.names)), np.nan)
    flags = np.zeros((n, 2), dtype=bool)
    bar = progress_bar(progress, n)
    for i, fit in enumerate(fits):
        if fit is not None:
            values[i], errors[i], flags[i] = own.values(fit), own.errors(fit), (fit.singular, fit.converged)
        if bar is not None:
            bar.update(1)
    if bar is not None:
        bar.close()
    return BootstrapResult(
        names=own.names,
        estimate=own.values(result),
        replicates=values,
        replicate_std_error=errors,
        fit_std_error=own.errors(result),
        singular=flags[:, 0],
        converged=flags[:, 1],
        kind=kind,
        kinds=own.kinds,
        _fit=result,
    )


def _without_rows(
    result: Fit, n: int, kind: str, statistic: Callable[[Fit], Any] | None, seed: Seed, progress: bool | None,
    first: int,
) -> BootstrapResult:  # fmt: skip
    """`bootstrap` of a fit whose rows are not held, refit by refit, from draws of the sums."""
    from .sums import SumDraws

    if kind != "parametric":
        _refuse_unknown(kind, dict.fromkeys(("parametric", "conditional", "residual", "cases")))
        refuse_rows(f"a bootstrap of kind={kind!r}")
    model, draw, key = result.model, SumDraws(result), key_of(seed)
    width = len(model.problem.kept)
    names = _parameter_names(model) if statistic is None else _named_numbers(statistic(result))[0]
    values, errors = np.full((n, len(names)), np.nan), np.full((n, len(names)), np.nan)
    flags = np.zeros((n, 2), dtype=bool)
    bar = progress_bar(progress, n)

    def parameters(fit: Fit) -> Array:
        if statistic is not None:
            return _named_numbers(statistic(fit))[1]
        found = parameters_of_fits(model, fit.beta[None], fit.covariance[None], np.array([fit.sigma2]))
        return np.asarray(found[0])

    for i in range(n):
        fit = result.again(draw(stream(key, first + i)))
        values[i], flags[i] = parameters(fit), (fit.singular, fit.converged)
        errors[i, :width] = np.sqrt(np.diag(fit.cov))[model.problem.kept] if statistic is None else np.nan
        if bar is not None:
            bar.update(1)
    if bar is not None:
        bar.close()
    of_fit = np.full(len(names), np.nan)
    if statistic is None:
        of_fit[:width] = np.sqrt(np.diag(result.cov))[model.problem.kept]
    return BootstrapResult(
        names=names,
        estimate=parameters(result),
        replicates=values,
        replicate_std_error=errors if statistic is None else None,
        fit_std_error=of_fit if statistic is None else None,
        singular=flags[:, 0],
        converged=flags[:, 1],
        kind=kind,
        kinds=_kinds(model) if statistic is None else ("statistic",) * len(names),
        _fit=result,
    )


def _resamples(m: int, n: int, seed: Seed, first: int) -> NDArray[np.int64]:
    """How often each of m groups is in each of n resamples (n, m)."""

    def resample(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return rng.multinomial(m, np.full(m, 1.0 / m), size=count)

    return np.concatenate([block() for block in draws(resample, n, key_of(seed), first=first)])


def _refuse_statistic(statistic: Callable[[Fit], Any] | None) -> None:
    if statistic is not None:
        raise LMMError("statistic= needs responses, which kind='cases' does not have; use another kind")


def _refuse_unknown(kind: str, known: Mapping[str, Any]) -> None:
    if kind not in (*known, "cases"):
        near = option("kind of bootstrap", kind, (*known, "cases"))
        raise LMMError(f"kind={kind!r} is unknown: use 'parametric', 'conditional', 'residual' or 'cases'{near}")


def _fits_of(result: Fit, n: int, draw: Draw, seed: Seed, first: int) -> Iterator[Fit | None]:
    """The fits of responses that are drawn; None where there is none."""
    for block in draws(draw, n, key_of(seed), stream_size(draw, result.nobs), first):
        for y in block():
            try:
                yield result.again(result.model.with_response(y))
            except LMMError:
                yield None


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
    for block in draws(draw, n, key_of(seed), stream_size(draw, result.nobs), first):
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
        kinds=("statistic",) * len(names),
        _fit=result,
    )

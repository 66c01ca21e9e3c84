"""Bootstrap of a fit: replicates, standard errors, bias and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.elements import element_names
from ..design.streamed import refuse_rows
from ..engines.one_factor.problem import one_factor
from ..errors import LMMError
from ..support.checks import check_count, float_array, plain_array
from ..support.hints import option
from ..support.progress import progress_bar
from ..support.seeds import Seed, beside, check_first, key_of, stream
from ..support.threads import thread_count
from ..support.types import Array
from . import structured
from .draws import Draw, draws, parametric, simulate_fit, stream_size
from .replicates import BootstrapResult
from .resampling import cases_of, clusters_of, parameters_of_fits, refits, refitted, rescaled

if TYPE_CHECKING:
    from ..engines.crossed.engine import CrossedCriterion
    from ..engines.crossed.problem import CrossedProblem
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = ["bootstrap"]


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
    w = model.root_weights
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

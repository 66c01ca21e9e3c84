"""Simulated studies: a test of each draw, fitted together where they can be, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..design.streamed import refuse_rows
from ..errors import LMMError
from ..estimation.constrained import constrained
from ..simulation.draws import simulate
from ..simulation.sums import SumDraws
from ..support.distributions import chi2_tail
from ..support.progress import progress_bar
from ..support.seeds import key_of, stream
from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.model import Model
    from ..inference.options import Ddf, Information
    from ..result import LMMResult
    from ..simulation.dropout import Dropout

__all__ = ["Alternative", "Studies", "check_alternative", "studies"]

Alternative = Literal["two-sided", "greater", "less"]


HELD = 1 << 22
"""Numbers in the responses that are drawn at a time where studies are fitted one by one."""


class Studies(NamedTuple):
    """What became of the studies.

    Attributes
    ----------
    pvalues : (n,) array
        NaN where a fit was not certified.
    converged, singular : (n,) bool arrays
    params : (n, p) array
    """

    pvalues: Array
    converged: NDArray[np.bool_]
    singular: NDArray[np.bool_]
    params: Array


def studies(
    truth: LMMResult, L: Array, ratio: bool, n_sim: int, seed: int, *, first: int, reml: bool, ddf: Ddf,
    information: Information, n_jobs: int | None, progress: bool | None, alternative: Alternative = "two-sided",
    dropout: Dropout | None = None,
) -> Studies:  # fmt: skip
    """Draw responses, fit each and test L beta = 0.

    Parameters
    ----------
    truth : LMMResult
    L : (rows, p) array
    ratio : bool
        Likelihood ratios in place of Wald tests; L then picks coefficients.
    n_sim, seed, first, reml, ddf, information, n_jobs, progress, alternative, dropout
        See `power`.
    """
    model = truth.model
    reduced = None
    if ratio and not model.streamed:
        tested: Array = np.any(L, axis=0)
        reduced = model.of(model.design.columns([i for i in model.problem.kept if not tested[i]]), None)
    if model.streamed or model.design.residual is not None or model.structure.restricted:
        asked = _Test(truth, L, reduced, ratio, reml and not ratio, ddf, information, alternative)
        return _one_by_one(asked, n_sim, seed, first, dropout, progress)
    drawn = partial(truth.simulate_fit, n_sim, seed, n_jobs=n_jobs, progress=progress, first=first, dropout=dropout)
    batch = drawn(reml=reml and reduced is None)
    good = batch.converged
    if reduced is None:
        test = batch.test(L, ddf=ddf, information=information)
        found = sided(test.pvalues, test.statistic, alternative)
    else:
        null = drawn(reml=False, fit=reduced)
        good = good & null.converged
        found = chi2_tail(np.maximum(null.criterion - batch.criterion, 0.0), len(L))
    return Studies(np.where(good, found, np.nan), good, batch.singular, batch.params)


class _Test(NamedTuple):
    """The test of L beta = 0 that each draw of `truth` is put to; see `studies`."""

    truth: LMMResult
    L: Array
    reduced: Model | None
    ratio: bool
    reml: bool
    ddf: Ddf
    information: Information
    alternative: Alternative


def _one_by_one(
    test: _Test, n_sim: int, seed: int, first: int, dropout: Dropout | None, progress: bool | None
) -> Studies:
    truth = test.truth
    p = len(truth.model.exog_names)
    out = Studies(
        np.full(n_sim, np.nan), np.zeros(n_sim, dtype=bool), np.zeros(n_sim, dtype=bool), np.full((n_sim, p), np.nan)
    )
    if truth.model.streamed:
        drawn = _models_of_sums(test, n_sim, seed, first, dropout)
    else:
        drawn = _models_of_rows(test, n_sim, seed, first, dropout)
    bar = progress_bar(progress, n_sim)
    try:
        for i, models in enumerate(drawn):
            _study(test, models, out, i)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return out


class Null(NamedTuple):
    """The fit without the coefficients tested."""

    criterion: float
    converged: bool


Models = tuple[Callable[[], "Model"], Callable[["LMMResult"], Null]]
"""The model of a draw, which may turn out not to be one that can be fitted, and the other fit of likelihood ratios."""


def _models_of_rows(
    test: _Test, n_sim: int, seed: int, first: int, dropout: Dropout | None
) -> Iterator[Models]:  # fmt: skip
    """The models of responses drawn."""
    truth, reduced = test.truth, test.reduced
    full = truth.model.fittable(lambda rng: simulate(truth, 1, rng)[0])
    size = max(1, HELD // truth.model.nobs)
    for begin in range(0, n_sim, size):
        for y in truth.simulate(min(size, n_sim - begin), seed, first=first + begin, dropout=dropout):
            yield partial(_observed, full, y), partial(_left_out, reduced, y)


def _left_out(reduced: Model | None, y: Array, fit: LMMResult) -> Null:
    assert reduced is not None
    null = fit.again(_observed(reduced, y), reml=False)
    return Null(null.criterion, null.converged)


def _models_of_sums(
    test: _Test, n_sim: int, seed: int, first: int, dropout: Dropout | None
) -> Iterator[Models]:  # fmt: skip
    """The models of draws of what a fit sees of a response, where rows are not held."""
    truth = test.truth
    if dropout is not None:
        refuse_rows("who leaves a study")
    draw, key = SumDraws(truth), key_of(seed)
    for i in range(n_sim):
        yield partial(draw, stream(key, first + i)), partial(_constrained, test.L)


def _constrained(L: Array, fit: LMMResult) -> Null:
    optimum = constrained(fit, L)
    return Null(fit.criterion + optimum.value - fit.optimum.value, optimum.converged)


def _study(test: _Test, models: Models, out: Studies, i: int) -> None:
    """Test draw i, and write down what became of it."""
    full, without = models
    try:
        fit = test.truth.again(full(), reml=test.reml)
        null = without(fit) if test.ratio else None
        certified = fit.converged and (null is None or null.converged)
        if null is None:
            one = fit.test(test.L, ddf=test.ddf, information=test.information)
            found = float(sided(np.array(one.pvalue), np.array(one.statistic), test.alternative))
        else:
            found = float(chi2_tail(np.array([max(null.criterion - fit.criterion, 0.0)]), len(test.L))[0])
    except LMMError:
        # a draw without a certified maximum does not reject
        return
    out.params[i], out.singular[i], out.converged[i] = fit.beta, fit.singular, certified
    out.pvalues[i] = found if certified else np.nan


def _observed(model: Model, y: Array) -> Model:
    """The model of the responses that are observed."""
    kept = np.flatnonzero(~np.isnan(y))
    return model.with_response(y) if len(kept) == len(y) else model.of(model.design.rows(kept), y[kept])


def check_alternative(alternative: str) -> None:
    """Refuse what no t test has for an alternative."""
    known = get_args(Alternative)
    if alternative not in known:
        raise LMMError(f"alternative={alternative!r} is unknown: use {known[0]!r}, {known[1]!r} or {known[2]!r}")


def sided(pvalues: Array, statistic: Array, alternative: Alternative) -> Array:
    """Two-sided p-values of t statistics, made one-sided where that is asked for."""
    if alternative == "two-sided":
        return pvalues
    towards = statistic > 0.0 if alternative == "greater" else statistic < 0.0
    return np.asarray(np.where(towards, 0.5 * pvalues, 1.0 - 0.5 * pvalues))

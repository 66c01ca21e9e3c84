"""Likelihood ratio tests of fits of which each has a design, and so a null distribution, of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.distributions import chi2_tail
from ...support.seeds import Seed, generator_of
from ...support.types import Array
from .compare import NOTHING, Null, NullWanted, check_null, null_test
from .many import BatchComparison
from .nesting import Nesting, nest
from .null_distributions import one_variance

if TYPE_CHECKING:
    from ...estimation.model import Model
    from ...tables.rows import FitLabels

__all__ = ["FitsToCompare", "against_linear", "compared"]


@dataclass(frozen=True, eq=False)
class FitsToCompare:
    """What a comparison takes of many fits.

    Attributes
    ----------
    labels : FitLabels
    reml : bool
    criterion : (n,) array
    certified : (n,) bool array
    rank, nobs : (n,) int arrays
        Fixed effects that the rows determine, and rows.
    columns : tuple of arrays
        X of all, and what else makes columns of X.
    model : callable
        The model of one of the fits.
    factor : callable
        Its relative factor.
    """

    labels: FitLabels
    reml: bool
    criterion: Array
    certified: NDArray[np.bool_]
    rank: NDArray[np.intp]
    nobs: NDArray[np.intp]
    columns: tuple[Array, ...]
    model: Callable[[int], Model]
    factor: Callable[[int], Array]


def compared(
    large: FitsToCompare, small: FitsToCompare, name: str, null: Null, n_sim: int | None, seed: Seed
) -> BatchComparison:
    """Test each fit against that of a smaller model of the same rows.

    Raises
    ------
    LMMError
        For fits that are not of the same problems or not nested, or a distribution that does not apply.
    """
    wanted = check_null(null, n_sim, seed)
    if len(large.nobs) != len(small.nobs) or not np.array_equal(large.nobs, small.nobs):
        raise LMMError(
            f"the fits must be of the same rows: there are {len(large.nobs)} and {len(small.nobs)}, of "
            f"{int(large.nobs.sum())} and {int(small.nobs.sum())} observations"
        )
    if large.reml != small.reml:
        raise LMMError("some of the fits are by REML and the others by ML; fit both alike")
    if large.reml and not _alike(large.columns, small.columns):
        raise LMMError("REML criteria cannot be compared where fixed parts differ: fit both with reml=False")
    good = large.certified & small.certified
    statistic = small.criterion - large.criterion

    def pair(i: int) -> tuple[Nesting, Model, Array | None]:
        model, other = large.model(i), small.model(i)
        found = nest(other, model)
        if isinstance(found, str):
            raise LMMError(f"smaller is not nested in this model, as {found}")
        return found, model, small.factor(i)

    return _tested(name, large, statistic, good, large.rank - small.rank, pair, wanted)


def _alike(one: tuple[Array, ...], other: tuple[Array, ...]) -> bool:
    return len(one) == len(other) and all(
        a is b or np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True)
    )


def against_linear(
    fits: FitsToCompare, linear: Array, name: str, null: Null, n_sim: int | None, seed: Seed
) -> BatchComparison:
    """Test each fit against the linear model without random effects, whose criteria (n,) are given."""
    wanted = check_null(null, n_sim, seed)

    def pair(i: int) -> tuple[Nesting, Model, Array | None]:
        model = fits.model(i)
        found = nest(None, model)
        if isinstance(found, str):
            raise LMMError(f"the random effects cannot be tested: {found}")
        return found, model, None

    gained = np.zeros(len(linear), dtype=np.intp)
    return _tested(name, fits, linear - fits.criterion, fits.certified, gained, pair, wanted)


def _tested(
    name: str, fits: FitsToCompare, statistic: Array, good: NDArray[np.bool_], gained: NDArray[np.intp],
    pair: Callable[[int], tuple[Nesting, Model, Array | None]], wanted: NullWanted,
) -> BatchComparison:  # fmt: skip
    """p-values; `gained` (n,) says how many fixed effects the larger model has more, problem by problem."""
    null, n_sim, seed = wanted
    if null == "bootstrap":
        raise LMMError("null='bootstrap' is for single fits: use compare(small[i], large[i], null='bootstrap')")
    count = len(statistic)
    pvalues, error, df = np.full(count, np.nan), np.zeros(count), np.zeros(count, dtype=np.intp)
    least = NOTHING + 1e-12 * np.abs(fits.criterion)
    statistic = np.where(good, np.where(statistic > least, statistic, 0.0), np.nan)
    tested = np.flatnonzero(good)
    if not len(tested):
        raise LMMError("none of the fits is certified in both models: there is nothing to compare")
    # what is nested does not depend on the problem, unless it lacks columns of X
    typical = int(tested[np.lexsort((fits.nobs[tested], fits.rank[tested]))[-1]])
    nesting, _, factor = pair(typical)
    if not (nesting.df or nesting.by_structure):
        raise LMMError("the models have as many parameters as each other: there is nothing to test")
    df[tested] = nesting.df - nesting.fixed + gained[tested]
    key: Any = seed if isinstance(seed, int) else int(generator_of(seed).integers(2**62))
    text = f"chi2({nesting.df})"
    if null == "chi2" or (not nesting.new and not nesting.undetermined and null != "exact"):
        some = tested[df[tested] > 0]
        pvalues[some] = chi2_tail(statistic[some], df[some].astype(np.float64))
        return BatchComparison(name, statistic, _one_or_all(df, tested), pvalues, error, text, fits.labels)
    # one variance whose mixture needs no weights: one design stands for all
    alone = nesting.alone is not None and not nesting.fixed
    exact = null == "exact" or (null == "auto" and factor is None and alone)
    if nesting.boundary == 1 and not exact and not nesting.undetermined:
        pvalues[tested], text = one_variance(statistic[tested], gained[tested] + nesting.free)
        return BatchComparison(name, statistic, _one_or_all(df, tested), pvalues, error, text, fits.labels)
    for i in tested[df[tested] > 0].tolist():
        own, model, factor = pair(i)
        found = null_test(float(statistic[i]), own, model, factor, fits.reml, null, n_sim, key)
        pvalues[i], error[i], text = found.pvalue, found.p_std_error, found.text
    return BatchComparison(name, statistic, _one_or_all(df, tested), pvalues, error, text, fits.labels)


def _one_or_all(df: NDArray[np.intp], tested: NDArray[np.intp]) -> Any:
    """The degrees of freedom that all have, or those of each."""
    first = int(df[tested[0]])
    return first if (df[tested] == first).all() else df

"""Comparison of fitted models: information criteria and likelihood ratio tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from ...errors import LMMError
from ...estimation.column_moments import data_sums
from ...support.arguments import checked
from ...support.checks import check_count
from ...support.seeds import Seed, check_seed, generator_of
from ...support.types import Array
from .f_tests import F_TESTS, by_f
from .nesting import Nesting, contained, efficient_information, fixed_columns, nest
from .null_distributions import SURELY, NullTest, apart, chi_bar_square, chi_square, counted, uncertain
from .table import Comparison, Row, information_criteria

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.model import Model
from ...simulation.draws import simulate_fit

__all__ = [
    "NOTHING",
    "Null",
    "NullWanted",
    "beyond_rounding",
    "check_null",
    "check_test",
    "compare",
    "moved",
    "null_test",
    "same_data",
    "tested",
    "warnings",
]

Null = Literal["auto", "chi2", "mixture", "exact", "bootstrap"]

_NULLS = ("auto", "chi2", "mixture", "exact", "bootstrap")
_DRAWS, _RESPONSES = 100_000, 10_000
SAME_SUMS = 1e-9
"""By how much sums over the same rows may differ, relatively."""

NOTHING = 1e-8
"""A likelihood ratio statistic within the precision to which optima are certified."""


@checked
def compare(
    *results: Fit,
    names: Sequence[str] | None = None,
    test: Literal["lrt", "kenward-roger", "satterthwaite"] | None = "lrt",
    null: Null = "auto",
    n_sim: int | None = None,
    seed: Seed = None,
    refit: bool = True,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Compare models fitted to the same data.

    Models stand in the order of their number of parameters; each is tested against the one before it, if that is
    nested in it.  Variances that the smaller model sets to zero lie on the boundary, where a chi-square distribution
    is not the null distribution (p-values twice as large as they should be for one variance).

    Parameters
    ----------
    *results : LMMResult
        Two or more.
    names : sequence of str, optional
        Of the models, in the order in which they are given; by default their formulas.
    test : {"lrt", "kenward-roger", "satterthwaite"} or None
        Likelihood ratio tests; F tests of fixed effects in the larger model, fitted by REML, as pbkrtest's, which suit
        few groups; or information criteria only.
    null : {"auto", "chi2", "mixture", "exact", "bootstrap"}
        Null distribution.  "chi2": with the number of parameters, whatever is tested.  "mixture": of chi-square
        distributions, with weights that fit the boundary (Self and Liang 1987; Stram and Lee 1994); chi-square where
        no variance is tested.  "exact": finite-sample distribution for one independent variance (Crainiceanu and
        Ruppert 2004; Greven et al. 2008, the other variances being taken as known).  "bootstrap": both models
        fitted to responses drawn from the smaller.  "auto", the same as in `random_effect_test`: "exact" where the
        variance tested is the only one of the model (if there are not too many different groups), else "mixture", and
        where its weights are not known no test.
    n_sim : int, optional
        Draws of "exact" and of mixtures without closed form, by default 100,000, or responses of "bootstrap", by
        default 10,000.
    seed : int, sequence of int, SeedSequence or Generator, optional
    refit : bool
        Refit REML fits by ML where fixed parts differ, as REML criteria are then not comparable, or where REML and ML
        fits are mixed.  Otherwise such models are refused.
    n_jobs : int, optional
        Threads of the bootstrap.
    progress : bool, optional
        Show a progress bar for the bootstrap (needs tqdm); by default in interactive sessions.

    Returns
    -------
    Comparison
        Where models are not nested, or the distribution asked for does not apply under "auto", the p-value is NaN and
        ``null`` says why.

    Raises
    ------
    LMMError
        For fewer than two results, results of different data (the difference is named), unknown options, or a null
        distribution that does not apply.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> small = flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit()
    >>> large = flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit()
    >>> print(flc.compare(small, large))
    Comparison of models fit by REML
    <BLANKLINE>
    1  Reaction ~ Days + (1 | Subject)
    2  Reaction ~ Days + (Days | Subject)
    <BLANKLINE>
       Parameters      AIC     AICc      BIC   logLik  Deviance    LRT  df       p
    1           4  1794.47  1794.69  1807.24  -893.23   1786.47
    2           6  1755.63  1756.11  1774.79  -871.81   1743.63  42.84   2  <0.001
    <BLANKLINE>
    Null distributions
    2  0.5 chi2(1) + 0.5 chi2(2)
    """
    wanted = _check(results, test, null, n_sim, seed)
    labels = [_label(fit.model) for fit in results] if names is None else list(names)
    if len(labels) != len(results) or (names is not None and len(set(labels)) < len(labels)):
        raise LMMError(f"names must be {len(results)} different ones, one for each model, not {labels}")
    same_data(results)
    fits, notes = _comparable(list(results), refit)
    order = sorted(range(len(fits)), key=lambda i: fits[i].n_parameters)
    fits, labels = [fits[i] for i in order], [labels[i] for i in order]
    reml = fits[0].reml
    shifts = [_basis_shift(fit, fits[0]) for fit in fits]
    if max(map(abs, shifts)) > 1e-8:
        notes.append("REML criteria depend on the coding of the fixed effects: all are given in the coding of model 1.")
    rows = [
        information_criteria(label, fit.n_parameters, fit.criterion + shift, fit.nobs)
        for label, fit, shift in zip(labels, fits, shifts, strict=True)
    ]
    for i in range(1, len(fits) if test is not None else 0):
        pair = f"model {i}", f"model {i + 1}"
        if test in F_TESTS:
            own = next(fit for fit in results if fit.model is fits[i].model)
            rows[i] = by_f(rows[i], own if own.reml else own.again(own.model, reml=True), fits[i - 1], pair, str(test))
        else:
            rows[i] = tested(rows[i], rows[i - 1], fits[i], fits[i - 1], pair, wanted, n_jobs=n_jobs, progress=progress)
    notes += warnings([(f"model {i + 1}", fit) for i, fit in enumerate(fits)])
    kind = "REML" if reml else "maximum likelihood"
    title, library = f"Comparison of models fit by {kind}", results[0].model.library
    return Comparison(title, tuple(rows), tuple(notes), reml, library, test in F_TESTS)


def _check(results: Sequence[Any], test: Any, null: Any, n_sim: int | None, seed: Any) -> NullWanted:
    from ...estimation.fit import Fit

    for i, result in enumerate(results):
        if not isinstance(result, Fit):
            remedy = "; call its fit() first" if hasattr(result, "fit") else ""
            if isinstance(result, (list, tuple)):
                remedy = "; give the results one by one, compare(*results)"
            raise LMMError(f"argument {i + 1} is a {type(result).__name__}, not the result of a fit{remedy}")
        result.require_estimates("compare", "compare the log-likelihoods, llf")
    if len(results) < 2:
        raise LMMError(f"compare needs at least two results, not {len(results)}")
    wanted = check_null(null, n_sim, seed)
    if test is not None:
        check_test(test, null)
    return wanted


def check_test(test: Any, null: Null) -> None:
    """Refuse an unknown test, and a null distribution of the likelihood ratio for an F test."""
    if test not in ("lrt", *F_TESTS):
        known = ", ".join(map(repr, ("lrt", *F_TESTS)))
        raise LMMError(f"test={test!r} is unknown: use {known}, or None in compare() for information criteria only")
    if test != "lrt" and null != "auto":
        raise LMMError(f"null={null!r} is of likelihood ratio tests: use test='lrt', or leave it out for test={test!r}")


class NullWanted(NamedTuple):
    """By which null distribution a test is to be judged, and how it is drawn where it has to be."""

    null: Null
    n_sim: int
    seed: Seed


def check_null(null: Any, n_sim: int | None, seed: Any) -> NullWanted:
    """What is wanted; unknown null distributions, and numbers and seeds that make no sense, are refused."""
    if not isinstance(null, str) or null not in _NULLS:
        raise LMMError(f"null={null!r} is unknown: use {', '.join(map(repr, _NULLS[:-1]))} or {_NULLS[-1]!r}")
    if n_sim is None:
        n_sim = _RESPONSES if null == "bootstrap" else _DRAWS
    check_count(n_sim, "n_sim", 2)
    check_seed(seed)
    return NullWanted(cast(Null, null), n_sim, seed)


def same_data(results: Sequence[Fit]) -> None:
    """Refuse results whose observations, weights or offsets differ.

    Raises
    ------
    LMMError
        Naming the first difference.
    """
    first = results[0].model
    for i, result in enumerate(results[1:], start=2):
        model = result.model
        if model is first:
            continue
        pair = f"results 1 and {i}"
        if model.sigma != first.sigma:
            said = ["estimated" if one.sigma is None else f"known as {one.sigma:g}" for one in (first, model)]
            raise LMMError(
                f"{pair} differ in sigma, the residual standard deviation: {said[0]} and {said[1]}; give both the same"
            )
        if model.nobs != first.nobs:
            dropped = (
                f" (rows dropped for missing values: {first.n_dropped} and {model.n_dropped}; fit both to "
                "the rows that are complete for both)"
                if first.n_dropped != model.n_dropped
                else "; fit both to the same rows"
            )
            raise LMMError(f"{pair} use {first.nobs} and {model.nobs} observations{dropped}")
        if model.streamed or first.streamed:
            _same_sums(first, model, pair)
            continue
        for name, one, other in (
            ("response", first.endog, model.endog),
            ("weights", _filled(first.weights, 1.0, first.nobs), _filled(model.weights, 1.0, first.nobs)),
            ("offset", _filled(first.offset, 0.0, first.nobs), _filled(model.offset, 0.0, first.nobs)),
        ):
            if np.array_equal(one, other):
                continue
            row = int(np.flatnonzero(one != other)[0])
            order = name == "response" and np.array_equal(np.sort(one), np.sort(other))
            remedy = "bring the rows into the same order" if order else "fit both models to the same data"
            digits = "g" if f"{one[row]:g}" != f"{other[row]:g}" else ".17g"
            raise LMMError(
                f"{pair} differ in the {name} (first at row {row} of those used: {one[row]:{digits}} and "
                f"{other[row]:{digits}}): "
                f"their likelihoods cannot be compared; {remedy}"
            )


def _same_sums(one: Model, other: Model, pair: str) -> None:
    """Refuse models whose rows are not held, and whose sums show that the data differ."""
    if one.streamed != other.streamed:
        raise LMMError(f"{pair}: rows are held by one of them only; fit both to the scan, or both in memory")
    for name, own, others in zip(("weights", "offset", "response"), data_sums(one), data_sums(other), strict=True):
        if not np.isclose(own, others, rtol=SAME_SUMS, atol=0.0):
            raise LMMError(
                f"{pair} differ in the {name} (by sums over the rows: {own:g} and {others:g}): their likelihoods "
                "cannot be compared; fit both models to the same data"
            )


def _filled(values: Array | None, default: float, n: int) -> Array:
    return np.full(n, default) if values is None else values


def _comparable(results: list[Fit], refit: bool) -> tuple[list[Fit], list[str]]:
    """Results whose criteria are of one kind."""
    kinds = {result.reml for result in results}
    if kinds == {False}:
        return results, []
    why = "REML and ML fits are mixed"
    if len(kinds) == 1:
        if all(_same_span(result.model, results[0].model) for result in results[1:]):
            return results, []
        why = "their fixed parts differ"
    if not refit:
        raise LMMError(f"the REML criteria of these models cannot be compared, as {why}; use refit=True, or fit by ML")
    changed = [result.again(result.model, reml=False) if result.reml else result for result in results]
    return changed, [f"Refitted by maximum likelihood: the models were fit by REML and {why}."]


def _same_span(one: Model, other: Model) -> bool:
    if one is other:
        return True
    X, Y = fixed_columns(one), fixed_columns(other)
    return X.shape == Y.shape and contained(X, Y)


def _basis_shift(fit: Fit, first: Fit) -> float:
    """What brings a REML criterion to the coding of X of the first: log|X'V^-1 X| changes by 2 log|det| of the map."""
    return float(fit.model.problem.log_jacobian - first.model.problem.log_jacobian) if fit.reml else 0.0


def _label(model: Model) -> str:
    residual = "" if model.design.residual is None else f", residual {model.design.residual.term}"
    if model.spec is not None:
        return " ".join(model.spec.formula.split()) + residual
    fixed = [name for i, name in enumerate(model.exog_names) if i in set(model.problem.kept.tolist())]
    bars = []
    for block in model.structure.blocks:
        inside = " + ".join(model.exog_re_names[block.start : block.stop])
        bar = "|" if block.correlated or block.stop == block.start + 1 else "||"
        bars.append(f"({inside} {bar} {model.factor_of(block).grouping.name})")
    return f"{model.response_name} ~ {' + '.join([*fixed, *bars])}{residual}"


def tested(
    row: Row, before: Row, fit: Fit, smaller: Fit, names: tuple[str, str], wanted: NullWanted, *,
    n_jobs: int | None = None, progress: bool | None = None,
) -> Row:  # fmt: skip
    """The row of a fit with its test against a smaller one.

    Parameters
    ----------
    row, before : Row
        Of the fit and of the smaller one.
    fit, smaller : LMMResult
        Both by REML, with fixed effects that span the same space, or both by ML.
    names : (str, str)
        What messages call the smaller and the larger model.
    wanted : NullWanted
    n_jobs, progress
        See `compare`.
    """
    (small, large), (null, n_sim, seed) = names, wanted
    if fit.n_parameters == smaller.n_parameters:
        return replace(row, null=f"No test: {small} and {large} have as many parameters.")
    nesting = nest(smaller.model, fit.model)
    if isinstance(nesting, str):
        return replace(row, null=f"No test: {small} is not nested in {large}, as {nesting}.")
    statistic = before.deviance - row.deviance
    error = apart(fit, smaller)
    if statistic < -1e-7 * (1.0 + abs(row.deviance)) - SURELY * error:
        why = f"{large} fits worse than {small}, nested in it, so that one of them is not at its optimum"
        return replace(row, null=f"No test: {why}.")
    statistic = beyond_rounding(statistic, row.deviance)
    try:
        if null == "bootstrap":
            found = _bootstrapped(statistic, smaller, fit, n_sim, seed, n_jobs, progress)
        else:
            factor = smaller.relative_factor if smaller.model.structure.q else None
            test = partial(null_test, nesting=nesting, large=fit.model, factor=factor, reml=fit.reml, null=null,
                           n_sim=n_sim, seed=seed)  # fmt: skip
            found = uncertain(test, statistic, error)
    except LMMError as refused:
        if null != "auto":
            raise LMMError(f"{small} and {large}: {refused}") from refused
        return replace(row, statistic=statistic, df=nesting.df, null=f"No test: {refused}.", statistic_std_error=error)
    return replace(
        row, statistic=statistic, df=nesting.df, pvalue=found.pvalue, p_std_error=found.p_std_error, null=found.text,
        statistic_std_error=error,
    )  # fmt: skip


def moved(larger: Row, smaller: Row) -> Row:
    """The test of the larger model in the row of the smaller."""
    return replace(
        smaller,
        statistic=larger.statistic,
        df=larger.df,
        pvalue=larger.pvalue,
        p_std_error=larger.p_std_error,
        null=larger.null,
        statistic_std_error=larger.statistic_std_error,
    )


def beyond_rounding(statistic: float, deviance: float) -> float:
    """A likelihood ratio statistic, 0 where it is no more than what optimisation and rounding leave of 0.

    On the boundary the p-value jumps from 1/2 to 1 there.
    """
    return statistic if statistic > NOTHING + 1e-12 * abs(deviance) else 0.0


def null_test(
    statistic: float, nesting: Nesting, large: Model, factor: Array | None, reml: bool, null: Null,
    n_sim: int, seed: Seed,
) -> NullTest:  # fmt: skip
    """The p-value of a likelihood ratio statistic, by any null distribution but the bootstrap.

    Parameters
    ----------
    statistic : float
    nesting : Nesting
    large : LinearMixedModel
    factor : (q, q) array or None
        Relative factor of the smaller model's fit; None for the linear model.
    reml : bool
    null : {"auto", "chi2", "mixture", "exact"}
    n_sim : int
    seed : int, sequence of int, SeedSequence or Generator, optional

    Raises
    ------
    LMMError
        Where the distribution does not apply.
    """
    if null == "auto":
        return _chosen_test(statistic, nesting, large, factor, reml, n_sim, seed)
    free = nesting.fixed + nesting.free
    if nesting.undetermined:
        raise LMMError(
            f"correlations of {', '.join(nesting.undetermined)} are not determined where the variances are zero, so "
            "that the statistic has no known null distribution; use null='bootstrap'"
        )
    structured = nesting.by_structure or large.residual is not None
    if structured and nesting.new and (null == "exact" or (null != "chi2" and nesting.boundary > 1)):
        raise LMMError(
            "several variances at once, and the exact distribution, have no null distribution beside structured "
            "residuals or restricted covariances; use null='bootstrap'"
        )
    if null == "chi2" or (not nesting.new and null != "exact"):
        return chi_square(statistic, nesting.df)
    if null == "exact":
        large.needs_unknown_variance("the exact null distribution", "use null='mixture' or 'bootstrap'")
        from .exact import draw, spectrum

        cone = nesting.alone
        if cone is None or nesting.fixed:
            raise LMMError(
                "the exact null distribution is that of one variance, of an effect that is independent of all others, "
                "with the same fixed effects; use null='mixture' or 'bootstrap'"
            )
        found = spectrum(large.exog[:, large.problem.kept], cone, large.weights)
        others = factor is not None
        text = f"exact finite-sample distribution{', other variances as known' if others else ''}, simulated"
        return counted(statistic, draw(found, n_sim, seed, reml), text)
    information = None
    if nesting.boundary > 1:
        relative = None if factor is None else factor @ factor.T
        information = efficient_information(nesting, large, relative, reml)
        if information is None:
            raise LMMError("the variances tested are confounded in the smaller model; use null='bootstrap'")
    return chi_bar_square(statistic, free, nesting.new, information, n_sim, seed)


def _chosen_test(
    statistic: float, nesting: Nesting, large: Model, factor: Array | None, reml: bool, n_sim: int,
    seed: Seed,
) -> NullTest:  # fmt: skip
    """Exact where the variance tested is the only one, so that nothing has to be taken as known; else the mixture."""
    note = ""
    alone = factor is None and nesting.alone is not None and not nesting.fixed
    if alone and large.residual is None and not large.streamed and large.sigma is None:
        try:
            return null_test(statistic, nesting, large, None, reml, "exact", n_sim, seed)
        except LMMError:
            note = " (too many different groups for the exact distribution)"
    found = null_test(statistic, nesting, large, factor, reml, "mixture", n_sim, seed)
    return replace(found, text=found.text + note)


def _bootstrapped(
    statistic: float, smaller: Fit, fit: Fit, n_sim: int, seed: Seed,
    n_jobs: int | None, progress: bool | None,
) -> NullTest:  # fmt: skip
    """Parametric bootstrap: both models fitted to responses drawn from the smaller, the same ones for both."""
    key = int(generator_of(seed).integers(2**62))
    drawing = partial(simulate_fit, smaller, n_sim, key, reml=smaller.reml, n_jobs=n_jobs, progress=progress)
    under, over = drawing(), drawing(fit=fit.model)
    shift = _basis_shift(fit, smaller)
    drawn = under.criterion - over.criterion - shift
    good = under.converged & over.converged
    lost = int(n_sim - np.count_nonzero(good))
    text = f"parametric bootstrap of {n_sim - lost} responses"
    if lost:
        text += f" ({lost} more without certified fits left out)"
    if lost == n_sim:
        raise LMMError("none of the bootstrap responses could be fitted by both models")
    return counted(statistic, drawn[good], text)


def warnings(fits: Sequence[tuple[str, Fit]]) -> list[str]:
    """What to beware of in tests of these models, named, in order of size."""
    out = []
    doubtful = [name for name, fit in fits if not fit.converged]
    if doubtful:
        out.append(f"Not certified as optimal: {', '.join(doubtful)}; tests that involve it are not to be relied on.")
    singular = [name for name, fit in fits[:-1] if fit.singular]
    if singular:
        out.append(
            f"Itself on the boundary: {', '.join(singular)}; null distributions of tests against it are approximate."
        )
    errors = [fit.optimum.monte_carlo.criterion for _, fit in fits if fit.optimum.monte_carlo is not None]
    if errors:
        out.append(
            f"Fits by method='iterative': criteria have Monte Carlo standard errors of up to {max(errors):.2g}, their "
            "differences those that are said with the tests."
        )
    return out

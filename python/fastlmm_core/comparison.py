"""Comparison of fitted models: information criteria and likelihood ratio tests."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import LMMError
from .nesting import Nesting, contained, efficient_information, nest
from .null_distributions import NullTest, chi_bar_square, chi_square, counted
from .text_tables import aligned_cells, html_table, p_value_cell, text_table

if TYPE_CHECKING:
    from .model import LinearMixedModel
    from .results import LMMResult

__all__ = [
    "Comparison",
    "Null",
    "Row",
    "beyond_rounding",
    "check_null",
    "compare",
    "information_criteria",
    "null_test",
    "same_data",
    "tested",
    "warnings",
]

Array = NDArray[np.float64]
Null = Literal["auto", "chi2", "mixture", "exact", "bootstrap"]

_NULLS = ("auto", "chi2", "mixture", "exact", "bootstrap")
_WIDTH = 80
NOTHING = 1e-8
"""A likelihood ratio statistic within the precision to which optima are certified."""
_COLUMNS = {
    "AIC": "aic", "AICc": "aicc", "BIC": "bic", "logLik": "llf", "Deviance": "deviance", "LRT": "statistic",
}  # fmt: skip

_Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Row:
    """One model, and its test against the model that it extends.

    Attributes
    ----------
    name : str
    n_parameters : int
        Fixed effects, covariance parameters and the residual variance.
    aic, aicc, bic, llf, deviance : float
        aicc = aic + 2k(k + 1) / (n - k - 1) for k parameters (Hurvich and Tsai 1989, Biometrika 76, 297-307); infinite
        without observations to spare.  deviance is -2 llf.
    statistic : float
        Likelihood ratio statistic; NaN where there is no test.
    df : int or None
        Parameters tested.
    p_value, p_se : float
        p-value and its Monte Carlo standard error (0 where nothing was simulated).
    null : str
        Null distribution, or why there is no test.
    """

    name: str
    n_parameters: int
    aic: float
    aicc: float
    bic: float
    llf: float
    deviance: float
    statistic: float = math.nan
    df: int | None = None
    p_value: float = math.nan
    p_se: float = math.nan
    null: str = ""


@dataclass(frozen=True)
class Comparison:
    """A table of models; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    title : str
    rows : tuple of Row
    notes : tuple of str
        What was refitted, and what to beware of.
    reml : bool
        Whether the criteria are those of REML.
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    reml: bool
    _spec: Any = None

    def to_frame(self) -> Any:
        """One row per model, in the caller's own frame library (a dict of arrays for models from arrays)."""
        rows = self.rows
        columns: dict[str, Any] = {"model": [row.name for row in rows]}
        columns["n_parameters"] = np.array([row.n_parameters for row in rows])
        for name in ("aic", "aicc", "bic", "llf", "deviance", "statistic"):
            columns[name] = np.array([getattr(row, name) for row in rows])
        columns["df"] = np.array([math.nan if row.df is None else float(row.df) for row in rows])
        columns["p_value"] = np.array([row.p_value for row in rows])
        columns["p_se"] = np.array([row.p_se for row in rows])
        columns["null"] = [row.null for row in rows]
        if self._spec is None:
            return {name: np.asarray(values) for name, values in columns.items()}
        return self._spec.frame(columns)

    def _table(self, columns: Sequence[str] = ("AIC", "AICc", "BIC", "logLik", "Deviance", "LRT")) -> _Table:
        rows = self.rows
        numbers = [aligned_cells([_decimal(getattr(row, _COLUMNS[name])) for row in rows]) for name in columns]
        cells = [
            [str(i + 1) for i in range(len(rows))],
            [str(row.n_parameters) for row in rows],
            *numbers,
            ["" if row.df is None else str(row.df) for row in rows],
            aligned_cells(["" if math.isnan(row.p_value) else p_value_cell(row.p_value) for row in rows]),
        ]
        header = ["", "Parameters", *columns, "df", "p"]
        return header, [list(line) for line in zip(*cells, strict=True)]

    def _nulls(self) -> list[tuple[str, str]]:
        return [(str(i + 1), row.null) for i, row in enumerate(self.rows) if row.null]

    def __str__(self) -> str:
        lines = [self.title, ""]
        for i, row in enumerate(self.rows):
            lines += _item(str(i + 1), row.name)
        table = text_table(*self._table(), left=1)
        if max(map(len, table)) > _WIDTH:
            table = text_table(*self._table(("AIC", "BIC", "logLik", "LRT")), left=1)
        lines += ["", *table]
        if self._nulls():
            lines += ["", "Null distributions"]
            for label, text in self._nulls():
                lines += _item(label, text)
        if self.notes:
            lines.append("")
        for note in self.notes:
            lines += textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names = [[str(i + 1), row.name] for i, row in enumerate(self.rows)]
        parts = [f"<p><strong>{html.escape(self.title)}</strong></p>", html_table(None, names, left=(0, 1))]
        parts.append(html_table(*self._table(), left=(0,)))
        if self._nulls():
            parts.append("<p>Null distributions</p>" + html_table(None, [list(x) for x in self._nulls()], left=(0, 1)))
        parts += [f"<p>{html.escape(note)}</p>" for note in self.notes]
        return f"<div>{''.join(parts)}</div>"


def _item(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent=f"{label}  ", subsequent_indent="   ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _decimal(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if abs(value) < 1e7 or not math.isfinite(value) else f"{value:.1f}"


def compare(
    *results: LMMResult,
    test: Literal["lrt"] | None = "lrt",
    null: Null = "auto",
    n_sim: int = 10_000,
    seed: int | np.random.Generator | None = None,
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
    test : {"lrt"} or None
        Likelihood ratio tests, or information criteria only.
    null : {"auto", "chi2", "mixture", "exact", "bootstrap"}
        Null distribution.  "chi2": with the number of parameters, whatever is tested.  "mixture": of chi-square
        distributions, with weights that fit the boundary (Self and Liang 1987; Stram and Lee 1994); chi-square where
        no variance is tested.  "exact": finite-sample distribution for one independent variance (Crainiceanu and
        Ruppert 2004; Greven et al. 2008, the other variances being taken as known).  "bootstrap": both models
        fitted to responses drawn from the smaller.  "auto": "mixture", and where its weights are not known no test.
    n_sim : int
        Draws of "exact" and "bootstrap" and of mixtures without closed form.
    seed : int or numpy Generator, optional
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
    """
    _check(results, test, null, n_sim, seed)
    same_data(results)
    fits, notes = _comparable(list(results), refit)
    fits.sort(key=lambda fit: fit.n_parameters)
    reml = fits[0].reml
    shifts = [_basis_shift(fit, fits[0]) for fit in fits]
    if max(map(abs, shifts)) > 1e-8:
        notes.append("REML criteria depend on the coding of the fixed effects: all are given in the coding of model 1.")
    rows = [
        information_criteria(_label(fit.model), fit.n_parameters, fit.criterion + shift, fit.nobs)
        for fit, shift in zip(fits, shifts, strict=True)
    ]
    if test is not None:
        for i in range(1, len(fits)):
            names = f"model {i}", f"model {i + 1}"
            rows[i] = tested(rows[i], rows[i - 1], fits[i], fits[i - 1], names, null, n_sim, seed, n_jobs, progress)
    notes += warnings([(f"model {i + 1}", fit) for i, fit in enumerate(fits)])
    kind = "REML" if reml else "maximum likelihood"
    return Comparison(f"Comparison of models fit by {kind}", tuple(rows), tuple(notes), reml, results[0].model.spec)


def _check(results: Sequence[Any], test: Any, null: Any, n_sim: int, seed: Any) -> None:
    from .results import LMMResult

    for i, result in enumerate(results):
        if not isinstance(result, LMMResult):
            remedy = "; call its fit() first" if hasattr(result, "fit") else ""
            raise LMMError(f"argument {i + 1} is a {type(result).__name__}, not the result of a fit{remedy}")
    if len(results) < 2:
        raise LMMError(f"compare needs at least two results, not {len(results)}")
    if test not in ("lrt", None):
        raise LMMError(f"test={test!r} is unknown: use 'lrt', or None for information criteria only")
    check_null(null, n_sim, seed)


def check_null(null: Any, n_sim: int, seed: Any) -> None:
    """Refuse unknown null distributions, and numbers of draws and seeds that make no sense."""
    if null not in _NULLS:
        raise LMMError(f"null={null!r} is unknown: use {', '.join(map(repr, _NULLS[:-1]))} or {_NULLS[-1]!r}")
    if n_sim < 2:
        raise LMMError(f"n_sim={n_sim} must be at least 2")
    if isinstance(seed, int) and seed < 0:
        raise LMMError(f"seed={seed} must not be negative")


def same_data(results: Sequence[LMMResult]) -> None:
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
        if model.nobs != first.nobs:
            dropped = (
                f" (rows dropped for missing values: {first.n_dropped} and {model.n_dropped}; fit both to "
                "the rows that are complete for both)"
                if first.n_dropped != model.n_dropped
                else "; fit both to the same rows"
            )
            raise LMMError(f"{pair} use {first.nobs} and {model.nobs} observations{dropped}")
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
            raise LMMError(
                f"{pair} differ in the {name} (first at row {row} of those used: {one[row]:g} and {other[row]:g}): "
                f"their likelihoods cannot be compared; {remedy}"
            )


def _filled(values: Array | None, default: float, n: int) -> Array:
    return np.full(n, default) if values is None else values


def _comparable(results: list[LMMResult], refit: bool) -> tuple[list[LMMResult], list[str]]:
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
    changed = [result.model.fit(reml=False) if result.reml else result for result in results]
    return changed, [f"Refitted by maximum likelihood: the models were fit by REML and {why}."]


def _same_span(one: LinearMixedModel, other: LinearMixedModel) -> bool:
    if one is other:
        return True
    X, Y = one.exog[:, one.problem.kept], other.exog[:, other.problem.kept]
    return X.shape == Y.shape and contained(X, Y)


def _basis_shift(fit: LMMResult, first: LMMResult) -> float:
    """What brings a REML criterion to the coding of X of the first: log|X'V^-1 X| changes by 2 log|det| of the map."""
    return float(fit.model.problem.log_jacobian - first.model.problem.log_jacobian) if fit.reml else 0.0


def information_criteria(name: str, n_parameters: int, criterion: float, nobs: int) -> Row:
    """The row of a model without a test."""
    k = n_parameters
    aic = criterion + 2.0 * k
    aicc = aic + 2.0 * k * (k + 1.0) / (nobs - k - 1.0) if nobs > k + 1 else math.inf
    bic = criterion + math.log(nobs) * k
    return Row(name, k, float(aic), float(aicc), float(bic), float(-0.5 * criterion), float(criterion))


def _label(model: LinearMixedModel) -> str:
    if model.spec is not None:
        return " ".join(model.spec.formula.split())
    fixed = [name for i, name in enumerate(model.exog_names) if i in set(model.problem.kept.tolist())]
    bars = []
    for block in model.structure.blocks:
        inside = " + ".join(model.exog_re_names[block.start : block.stop])
        bar = "|" if block.structure == "full" or block.stop == block.start + 1 else "||"
        name = next(f.grouping.name for f in model.factors if f.start <= block.start < f.stop)
        bars.append(f"({inside} {bar} {name})")
    return f"{model.response_name} ~ {' + '.join([*fixed, *bars])}"


def tested(
    row: Row, before: Row, fit: LMMResult, smaller: LMMResult, names: tuple[str, str], null: Null, n_sim: int,
    seed: int | np.random.Generator | None, n_jobs: int | None = None, progress: bool | None = None,
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
    null, n_sim, seed, n_jobs, progress
        See `compare`.
    """
    small, large = names
    if fit.n_parameters == smaller.n_parameters:
        return replace(row, null=f"No test: {small} and {large} have as many parameters.")
    nesting = nest(smaller.model, fit.model)
    if isinstance(nesting, str):
        return replace(row, null=f"No test: {small} is not nested in {large}, as {nesting}.")
    statistic = before.deviance - row.deviance
    if statistic < -1e-7 * (1.0 + abs(row.deviance)):
        why = f"{large} fits worse than {small}, nested in it, so that one of them is not at its optimum"
        return replace(row, null=f"No test: {why}.")
    statistic = beyond_rounding(statistic, row.deviance)
    try:
        if null == "bootstrap":
            found = _bootstrapped(statistic, smaller, fit, n_sim, seed, n_jobs, progress)
        else:
            found = null_test(statistic, nesting, fit.model, smaller.relative_factor, fit.reml, null, n_sim, seed)
    except LMMError as error:
        if null != "auto":
            raise LMMError(f"{small} and {large}: {error}") from error
        return replace(row, statistic=statistic, df=nesting.df, null=f"No test: {error}.")
    return replace(row, statistic=statistic, df=nesting.df, p_value=found.p_value, p_se=found.p_se, null=found.text)


def beyond_rounding(statistic: float, deviance: float) -> float:
    """A likelihood ratio statistic, 0 where it is no more than what optimisation and rounding leave of 0.

    On the boundary the p-value jumps from 1/2 to 1 there.
    """
    return statistic if statistic > NOTHING + 1e-12 * abs(deviance) else 0.0


def null_test(
    statistic: float, nesting: Nesting, large: LinearMixedModel, factor: Array | None, reml: bool, null: Null,
    n_sim: int, seed: int | np.random.Generator | None,
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
    seed : int or Generator, optional

    Raises
    ------
    LMMError
        Where the distribution does not apply.
    """
    free = nesting.fixed + nesting.free
    if null == "chi2" or (not nesting.new and null != "exact"):
        return chi_square(statistic, nesting.df)
    if null == "exact":
        from .exact_variance_test import draw, spectrum

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


def _bootstrapped(
    statistic: float, smaller: LMMResult, fit: LMMResult, n_sim: int, seed: int | np.random.Generator | None,
    n_jobs: int | None, progress: bool | None,
) -> NullTest:  # fmt: skip
    """Parametric bootstrap: both models fitted to responses drawn from the smaller, the same ones for both."""
    key = int(np.random.default_rng(seed).integers(2**62))
    under = smaller.simulate_fit(n_sim, key, n_jobs=n_jobs, progress=progress)
    over = smaller.simulate_fit(n_sim, key, n_jobs=n_jobs, progress=progress, fit=fit.model)
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


def warnings(fits: Sequence[tuple[str, LMMResult]]) -> list[str]:
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
    return out

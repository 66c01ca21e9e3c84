"""Backward elimination: the random part by tests, the fixed part by AIC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LMMError
from ...formula.rewriting import Written
from ...support.arguments import checked
from ...support.checks import check_share
from ...support.display import Cells, Line, Part, Shown
from ...support.seeds import Seed
from ...support.text_tables import aligned_cells, p_value_cell
from ...tables.columns import native_frame
from .compare import Null, NullWanted, check_null, moved, tested
from .drop1 import drop1
from .table import Row, information_criteria

if TYPE_CHECKING:
    from ...estimation.fit import Fit

__all__ = ["Selection", "Step", "simplify", "step"]

Refit = Callable[[str], "Fit"]
"""The fit of a formula to the rows and by the criterion of the fit from which the elimination starts."""


@dataclass(frozen=True)
class Step:
    """One thing left out, and what that cost.

    Attributes
    ----------
    left_out : str
        A term, an effect, or the correlations of a term.
    formula : str
        What remains.
    n_parameters : int
    aic : float
        Of the smaller model; by REML for random effects, by ML for terms of the fixed part.
    aic_change : float
        Against the model before: negative where the smaller one is better.
    statistic : float
        By how much -2 log-likelihood grows.
    df : int or None
    pvalue : float
        Of the likelihood ratio test against the model before, NaN where there is none.
    null : str
        Its null distribution, or why there is no test.
    rank : str
        Where the model before is singular: dimensions that its random effects span, "5 of 6 (subject)".
    """

    left_out: str
    formula: str
    n_parameters: int
    aic: float
    aic_change: float
    statistic: float
    df: int | None
    pvalue: float
    null: str
    rank: str


@checked
@dataclass(frozen=True, repr=False)
class Selection(Shown):
    """What a backward elimination left out, step by step, and the fit that remains.

    Attributes
    ----------
    title : str
    steps : tuple of Step
    result : LMMResult
        The fit that remains, by the criterion of the first.
    notes : tuple of str
        By what steps were chosen, and what would have been next.
    """

    title: str
    steps: tuple[Step, ...]
    result: Any
    notes: tuple[str, ...]

    @property
    def formula(self) -> str:
        """The formula that remains."""
        return str(self.result.model.spec.formula)

    def to_frame(self) -> Any:
        """One row per step: left_out, n_parameters, aic, aic_change, statistic, df, p_value, null, rank, formula."""
        steps = self.steps
        columns: dict[str, Any] = {"left_out": [one.left_out for one in steps]}
        columns["n_parameters"] = np.array([one.n_parameters for one in steps], dtype=np.intp)
        for name in ("aic", "aic_change", "statistic"):
            columns[name] = np.array([getattr(one, name) for one in steps], dtype=np.float64)
        columns["df"] = np.array([math.nan if one.df is None else float(one.df) for one in steps], dtype=np.float64)
        columns["p_value"] = np.array([one.pvalue for one in steps], dtype=np.float64)
        for name in ("null", "rank", "formula"):
            columns[name] = [getattr(one, name) for one in steps]
        return native_frame(self.result.model.library, columns)

    def _shown(self) -> Iterator[Part]:
        yield Line(self.title, "title")
        if self.steps:
            yield Cells(*self._cells(), left=2)
        else:
            yield "Nothing was left out."
        yield f"Remaining: {self.formula}"
        yield from self.notes

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        steps = self.steps
        header = ["", "Left out", "Parameters", "AIC", "Change", "LRT", "df", "p"]
        columns = [
            [str(i + 1) for i in range(len(steps))],
            [one.left_out for one in steps],
            [str(one.n_parameters) for one in steps],
            aligned_cells([f"{one.aic:.2f}" for one in steps]),
            aligned_cells([f"{one.aic_change:+.2f}" for one in steps]),
            aligned_cells(["" if math.isnan(one.statistic) else f"{one.statistic:.2f}" for one in steps]),
            ["" if one.df is None else str(one.df) for one in steps],
            aligned_cells(["" if math.isnan(one.pvalue) else p_value_cell(one.pvalue) for one in steps]),
        ]
        if any(one.rank for one in steps):
            header.append("Rank before")
            columns.append([one.rank for one in steps])
        return header, [list(line) for line in zip(*columns, strict=True)]


def simplify(
    result: Fit, refit: Refit, *, alpha: float = 0.2, null: Null = "auto", n_sim: int | None = None, seed: Seed = None
) -> Selection:
    """Leave out what the random part does not need, the least needed first.

    Each step tries every model with one thing less: without the correlations of a term, without an effect that is part
    of no other effect of its term (intercepts last), without a whole term.  The one with the largest p-value is taken
    as long as that is above `alpha`; where there is no test, as long as AIC falls.  The null distributions respect the
    boundary (`compare`).  One term with an effect remains.

    Parameters
    ----------
    result : LMMResult
        From a formula; by REML or ML, as all steps.
    refit : callable
    alpha : float
        Matuschek et al. (2017, J. Mem. Lang. 94, 305) recommend 0.2 for random effects.
    null, n_sim, seed
        See `compare`.

    Returns
    -------
    Selection

    Raises
    ------
    LMMError
        For a model from arrays, structured random effects or residuals, or unknown options.
    """
    wanted = _checked(result, "simplify", alpha, null, n_sim, seed)
    current, steps, last = _random_part(result, refit, alpha, wanted)
    notes = [f"Likelihood ratio tests at alpha = {alpha:g}, {'REML' if result.reml else 'maximum likelihood'}."]
    if last:
        notes.append(last)
    return Selection("Simplification of the random part", tuple(steps), current, tuple(notes))


def step(
    result: Fit, refit: Refit, *, alpha: float = 0.1, null: Null = "auto", n_sim: int | None = None, seed: Seed = None
) -> Selection:
    """Backward elimination of the random part by tests, as `simplify`, and then of the fixed part by AIC.

    Terms of the fixed part that are part of no interaction are left out one at a time, fits being by ML, as long as AIC
    falls.

    Parameters
    ----------
    result, refit, alpha, null, n_sim, seed
        See `simplify`.

    Returns
    -------
    Selection

    Raises
    ------
    LMMError
        As `simplify`.
    """
    wanted = _checked(result, "step", alpha, null, n_sim, seed)
    current, steps, _ = _random_part(result, refit, alpha, wanted)
    while True:
        written = Written.of(_formula(current))
        if not set(written.fixed) - {"1"}:
            break
        rows = drop1(current).rows
        best = min(rows[1:], key=lambda row: row.aic)
        if best.aic >= rows[0].aic:
            break
        smaller = written.without(best.name.removeprefix("without "))
        current = refit(smaller.formula)
        steps.append(_step(best.name.removeprefix("without "), smaller.formula, best, rows[0], ""))
    kind = "REML" if result.reml else "maximum likelihood"
    notes = (
        f"Random effects by likelihood ratio tests at alpha = {alpha:g}, {kind}; then terms by AIC, by ML.",
        "p-values, standard errors and intervals of what remains do not know that it was selected.",
    )
    return Selection("Backward elimination", tuple(steps), current, notes)


def _checked(result: Fit, name: str, alpha: float, null: Any, n_sim: int | None, seed: Any) -> NullWanted:
    result.require_estimates(name, "fit the response: result.model.fit()")
    model = result.model
    model.needs_rows_to_refit(f"{name}()")
    if model.spec is None:
        raise LMMError(f"{name}() rewrites a formula, and this model is from arrays; leave out columns of X and Z")
    model.needs_independent_residuals(f"{name}()")
    model.needs_free_covariances(f"{name}()")
    check_share(alpha, "alpha")
    return check_null(null, n_sim, seed)


def _formula(result: Fit) -> str:
    assert result.model.spec is not None
    return result.model.spec.formula


def _random_part(result: Fit, refit: Refit, alpha: float, wanted: NullWanted) -> tuple[Fit, list[Step], str]:
    """The fit that remains, the steps, and a sentence on the step that was not taken."""
    current, steps = result, list[Step]()
    while True:
        tried = [
            (name, written, smaller, row)
            for name, written in Written.of(_formula(current)).simpler()
            for smaller in [refit(written.formula)]
            for row in [_against(current, smaller, name, wanted)]
        ]
        if not tried:
            return current, steps, ""
        before = _row(current, "")
        name, written, smaller, row = max(tried, key=lambda one: _worth(one[3], before))
        if _worth(row, before) <= alpha:
            said = f"p = {row.pvalue:.2g}" if not math.isnan(row.pvalue) else f"AIC {row.aic - before.aic:+.2f}"
            return current, steps, f"Next would be {name}, {said}."
        steps.append(_step(name, written.formula, row, before, _rank(current)))
        current = smaller


def _worth(row: Row, before: Row) -> float:
    """The p-value of a smaller model; without a test 1 where its AIC is lower and 0 where it is not."""
    return float(row.aic < before.aic) if math.isnan(row.pvalue) else row.pvalue


def _row(fit: Fit, name: str) -> Row:
    return information_criteria(name, fit.n_parameters, fit.criterion, fit.nobs)


def _against(larger: Fit, smaller: Fit, name: str, wanted: NullWanted) -> Row:
    """The row of a smaller model with its test against the larger."""
    row, full = _row(smaller, f"without {name}"), _row(larger, "")
    names = f"the model without {name}", "the model with it"
    return moved(tested(full, row, larger, smaller, names, wanted), row)


def _step(name: str, formula: str, row: Row, before: Row, rank: str) -> Step:
    change = row.deviance - before.deviance
    return Step(
        name, formula, row.n_parameters, row.aic, row.aic - before.aic, change, row.df, row.pvalue, row.null, rank
    )


def _rank(fit: Fit) -> str:
    """Dimensions of the random effects of each term that is singular."""
    sizes = {name: b.stop - b.start for name, b in zip(fit.model.term_names, fit.model.structure.blocks, strict=True)}
    ranks = fit.random_effects_rank
    return ", ".join(f"{ranks[name]} of {size} ({name})" for name, size in sizes.items() if ranks[name] < size)

"""Tests of the terms of the fixed part, each left out in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import LMMError
from ...estimation.constrained import constrained
from ...formula.coding import FixedTerm, fixed_terms
from ...support.seeds import Seed
from .compare import Null, beyond_rounding, check_null, check_test, moved, tested, warnings
from .f_tests import f_row, restriction
from .nesting import contained
from .null_distributions import chi_square
from .table import Comparison, Row, information_criteria

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.model import Model

__all__ = ["drop1"]


def drop1(
    result: Fit,
    term: str | None = None,
    *,
    test: Literal["lrt", "kenward-roger", "satterthwaite"] = "lrt",
    null: Null = "auto",
    n_sim: int | None = None,
    seed: Seed = None,
) -> Comparison:
    """Tests of the terms of the fixed part, by fits without each of them.

    Only terms that are part of no interaction in the model are left out, as by R's ``drop1``; all fits are by maximum
    likelihood.

    Parameters
    ----------
    result : LMMResult
        Refitted by maximum likelihood where it is by REML.
    term : str, optional
        One term; by default each that can be left out.
    test : {"lrt", "kenward-roger", "satterthwaite"}
        The likelihood ratio, or F tests of the fit by REML as pbkrtest's and lmerTest's, which suit few groups.
    null : {"auto", "chi2", "bootstrap"}
        Null distribution, see `compare`; "bootstrap" draws responses from the fit without the term.
    n_sim : int, optional
        Responses of "bootstrap", by default 10,000.
    seed : int, sequence of int, SeedSequence or Generator, optional

    Returns
    -------
    Comparison
        The model first, then each model without one of the terms, with the test of that term.

    Raises
    ------
    LMMError
        For a term that is unknown or part of an interaction, and an unknown null distribution.
    """
    result.require_estimates("drop1", "fit the response: result.model.fit()")
    wanted = check_null(null, n_sim, seed)
    check_test(test, null)
    full = result.again(result.model, reml=False) if result.reml else result
    by_reml = result if result.reml or test == "lrt" else result.again(result.model, reml=True)
    rows = [information_criteria("all terms", full.n_parameters, full.criterion, full.nobs)]
    fits = []
    for left_out in _chosen(result.model, term):
        name = f"without {left_out.name}"
        if result.model.streamed:
            rows.append(_without_rows(full, by_reml, left_out, null, test))
            continue
        smaller = full.again(_without(result.model, left_out), reml=False)
        row = information_criteria(name, smaller.n_parameters, smaller.criterion, full.nobs)
        names = f"the model {name}", "the model with it"
        if test == "lrt":
            rows.append(moved(tested(rows[0], row, full, smaller, names, wanted), row))
        else:
            # the term's own coefficients, where all can be estimated, as lmerTest
            whole = len(result.model.problem.kept) == len(result.model.exog_names)
            own = np.eye(len(result.model.exog_names))[list(left_out.columns)]
            same = whole and smaller.model.problem.rank == result.model.problem.rank - len(own)
            rows.append(f_row(row, by_reml, own if same else restriction(result.model, smaller.model), test))
        fits.append((f"the model {name}", smaller))
    notes = warnings([*fits, ("the model", full)])
    if result.reml:
        notes.insert(0, "Refitted by maximum likelihood: REML criteria of different fixed parts cannot be compared.")
    title = "Tests of terms, maximum likelihood" if test == "lrt" else "Tests of terms; criteria by maximum likelihood"
    return Comparison(title, tuple(rows), tuple(notes), False, result.model.library, test != "lrt")


def _without_rows(full: Fit, by_reml: Fit, term: FixedTerm, null: Null, test: Any) -> Row:
    """The row of a term left out of a model whose rows are not held: its coefficients are held at zero."""
    model, names = full.model, full.model.exog_names
    if null not in ("auto", "chi2"):
        raise LMMError(f"null={null!r} needs the rows, which are not held; use null='chi2'")
    if term.factors and not any(one.is_intercept for one in fixed_terms(model.design)):
        raise LMMError(
            f"term {term.name!r}: without an intercept the levels of other factors change with it, and the rows are "
            "not held; fit the smaller formula to the source too, and compare() the results"
        )
    columns = [j for j in term.columns if j in set(model.problem.kept.tolist())]
    name = f"without {term.name}"
    if not columns:
        return replace(
            information_criteria(name, full.n_parameters, full.criterion, full.nobs),
            null="No test: its columns are combinations of those before them.",
        )
    L = np.eye(len(names))[columns]
    optimum = constrained(full, L)
    statistic = optimum.value - full.optimum.value
    row = information_criteria(name, full.n_parameters - len(L), full.criterion + statistic, full.nobs)
    if not optimum.converged:
        return replace(row, null="No test: the fit without it is not certified.")
    if test != "lrt":
        return f_row(row, by_reml, L, test)
    found = chi_square(beyond_rounding(statistic, row.deviance), len(L))
    return replace(
        row, statistic=beyond_rounding(statistic, row.deviance), df=len(L), pvalue=found.pvalue,
        p_std_error=found.p_std_error, null=found.text,
    )  # fmt: skip


def _chosen(model: Model, term: str | None) -> list[FixedTerm]:
    """Terms that no other contains."""
    terms = [t for t in fixed_terms(model.design) if not t.is_intercept]
    free = [t for t in terms if not any(_parts(t) < _parts(other) for other in terms)]
    if term is None:
        if not free:
            raise LMMError("the fixed part has no term that could be left out but the intercept")
        return free
    wanted = frozenset(term.split(":")) if isinstance(term, str) else None
    for t in terms:
        if t.name == term or _parts(t) == wanted:
            if t in free:
                return [t]
            above = next(other for other in terms if _parts(t) < _parts(other))
            raise LMMError(f"term={term!r} is part of {above.name!r}: leave that out first, or test it by anova()")
    known = ", ".join(repr(t.name) for t in free)
    raise LMMError(f"term={term!r} is not a term of the fixed part that can be left out; these are {known}")


def _parts(term: FixedTerm) -> frozenset[str]:
    return term.factors | term.numeric


def _without(model: Model, term: FixedTerm) -> Model:
    """The model without a term; what other factors span together with it, a constant, is kept."""
    design = model.design
    columns = [j for j in range(design.exog.shape[1]) if j not in term.columns]
    smaller = replace(design.columns(columns), spec=None)
    one, X = np.ones((len(design.exog), 1)), model.exog[:, model.problem.kept]
    rest = X[:, ~np.isin(model.problem.kept, term.columns)]
    factors = any(t.factors and not t.numeric for t in fixed_terms(design) if t.name != term.name)
    if factors and contained(one, X) and not (rest.shape[1] and contained(one, rest)):
        # without an intercept the first factor has all its levels, and without that one the next
        smaller = smaller.with_columns(one, ("Intercept",))
    return model.of(smaller, model.endog)

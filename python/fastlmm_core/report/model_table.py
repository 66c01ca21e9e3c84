"""Models side by side, as papers print them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from ..covariance.elements import sd_and_cor
from ..diagnostics.marginal import icc, r2
from ..errors import LMMError
from ..estimation.fit import Fit
from ..inference.imputation.pool import PooledResult
from ..inference.options import Ddf, Information, Vcov
from ..inference.residual_parameters import residual_parameters
from ..inference.sandwich import sandwich
from ..inference.wald_test import method
from ..support.arguments import checked
from ..support.checks import check_level
from ..support.display import Cells, Part, Shown
from ..support.text_tables import estimate_cells, p_value_cell, statistic_cell, text_table
from ..tables.columns import native_frame
from .tidy import FIXED, fixed_columns

__all__ = ["ModelTable", "Style", "table"]

Style = Literal["std_error", "interval", "statistic", "p_value"]

_RESIDUAL = "Residual SD"

_FEW = 4
"""Parameters of structured residuals up to which they are shown."""

_FACTS = (
    "Response",
    "Residuals",
    "Estimation",
    "Imputations",
    "Observations",
    "Groups",
    "ICC",
    "R2",
    "AIC",
    "BIC",
    "Log-likelihood",
)
"""How the facts of a model begin, in the order in which they stand."""

_BELOW = {
    "std_error": "standard errors in parentheses",
    "interval": "{level:g}% intervals in brackets",
    "statistic": "t statistics in parentheses",
    "p_value": "p-values in parentheses",
}


class _Column(NamedTuple):
    """One model.

    Attributes
    ----------
    coefficients : dict
        Name to the numbers of `FIXED[1:]`.
    components : dict
        What is known of the random part in words, to a standard deviation or correlation.
    facts : dict
        Everything else, as it is shown.
    said : str
        How tests are made.
    known : bool
        Whether the residual standard deviation is known, not estimated.
    """

    coefficients: dict[str, dict[str, float]]
    components: dict[str, float]
    facts: dict[str, str]
    said: str
    known: bool = False


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ModelTable(Shown):
    """Models side by side; prints as text, shows as HTML in notebooks, and writes itself as LaTeX or Markdown.

    Attributes
    ----------
    names : tuple of str
        Of the models.
    style : {"std_error", "interval", "statistic", "p_value"}
        What stands below each coefficient.
    level : float
        Of intervals.
    notes : tuple of str
    """

    names: tuple[str, ...]
    style: Style
    level: float
    notes: tuple[str, ...]
    _columns: tuple[_Column, ...] = field(repr=False)
    _library: str = field(repr=False)

    def to_frame(self) -> Any:
        """One row per model and coefficient, standard deviation or correlation.

        Returns
        -------
        frame in the library of the first model's data, or dict of arrays
            model, group ("fixed" or "random"), term, and for the fixed effects estimate, std_error, df, statistic,
            p_value, conf_low, conf_high.
        """
        rows = []
        for name, column in zip(self.names, self._columns, strict=True):
            rows += [(name, "fixed", term, *values.values()) for term, values in column.coefficients.items()]
            blank = (np.nan,) * (len(FIXED[1:]) - 1)
            rows += [(name, "random", term, value, *blank) for term, value in column.components.items()]
        columns = zip(*rows, strict=True)
        return native_frame(
            self._library, dict(zip(("model", "group", "term", *FIXED[1:]), map(list, columns), strict=True))
        )

    def as_gt(self) -> Any:
        """A table of the package great_tables, to be styled and saved by it.

        Raises
        ------
        ModuleNotFoundError
            Where great_tables is not installed.
        """
        import pandas as pd

        great_tables = importlib.import_module("great_tables")
        rows = [[group, *row] for group, part in self._sections() for row in part]
        frame = pd.DataFrame(rows, columns=["group", "term", *self.names])
        made = great_tables.GT(frame, rowname_col="term", groupname_col="group")
        for note in self.notes:
            made = made.tab_source_note(note)
        return made

    # ---- cells -----------------------------------------------------------------------------------

    def _sections(self) -> list[tuple[str, list[list[str]]]]:
        """Names of the parts of the table, and their rows."""
        fixed = []
        for name in _union([column.coefficients for column in self._columns]):
            above, below = [name], [""]
            for column in self._columns:
                estimate, under = self._coefficient(column.coefficients.get(name))
                above.append(estimate)
                below.append(under)
            fixed += [above, below]
        random = []
        shown = [_components(column) for column in self._columns]
        names = _union(shown)
        terms = list(dict.fromkeys(_term(name) for name in names))
        # what belongs to one term stands together, and the residual last
        for name in sorted(names, key=lambda name: (name == _RESIDUAL, terms.index(_term(name)))):
            random.append([name, *(column.get(name, "") for column in shown)])
        facts = [
            [name, *(column.facts.get(name, "") for column in self._columns)]
            for name in sorted(_union([column.facts for column in self._columns]), key=_place)
        ]
        return [("Fixed effects", fixed), ("Random effects", random), ("Fit", facts)]

    def _coefficient(self, values: dict[str, float] | None) -> tuple[str, str]:
        """The cells of one coefficient in one model."""
        if values is None:
            return "", ""
        error = values["std_error"]

        def cell(number: float, digits: int) -> str:
            return estimate_cells([number], [error], digits)[0].strip()

        if self.style == "interval":
            under = f"[{cell(values['conf_low'], 3)}, {cell(values['conf_high'], 3)}]"
        elif self.style == "std_error":
            under = f"({cell(error, 3)})"
        elif self.style == "statistic":
            under = f"({statistic_cell(values['statistic'])})"
        else:
            under = f"({p_value_cell(values['p_value'])})"
        return cell(values["estimate"], 3), under

    def _rows(self) -> tuple[list[list[str]], tuple[int, ...]]:
        """All rows, and those above which there is a rule."""
        rows: list[list[str]] = []
        rules = []
        for _, part in self._sections():
            rules += [len(rows)] if rows and part else []
            rows += part
        return rows, tuple(rules)

    def __str__(self) -> str:
        rows, rules = self._rows()
        # a digit stands over a digit, not over the parenthesis
        padded = [[row[0], *(cell and cell + " " * (cell[-1] not in ")]") for cell in row[1:])] for row in rows]
        lines = text_table(["", *(f"{name} " for name in self.names)], padded, left=1)
        width = max(map(len, lines))
        body = [line for i, text in enumerate(lines[1:]) for line in (["-" * width, text] if i in rules else [text])]
        return "\n".join([lines[0], "-" * width, *body, "-" * width, *self.notes])

    def _shown(self) -> Iterator[Part]:
        rows, rules = self._rows()
        yield Cells(["", *self.names], rows, 1, rules)
        yield from self.notes


def _union(columns: Sequence[dict[str, Any]]) -> list[str]:
    """Names of all columns in the order in which they come up."""
    return list(dict.fromkeys(name for column in columns for name in column))


def _term(component: str) -> str:
    return component.rpartition(": ")[0]


def _place(fact: str) -> int:
    """Where a fact stands among the others."""
    return next((i for i, start in enumerate(_FACTS) if fact.startswith(start)), len(_FACTS))


def _components(column: _Column) -> dict[str, str]:
    """Cells of standard deviations and correlations."""
    shown = {
        name: ("." if np.isnan(value) else f"{value:.3f}") if ": Cor " in name else f"{value:.4g}"
        for name, value in column.components.items()
    }
    return shown | ({_RESIDUAL: f"{shown[_RESIDUAL]} (known)"} if column.known else {})


# ---- from fits -----------------------------------------------------------------------------------


@checked
def table(
    *results: Any,
    names: Sequence[str] | None = None,
    style: Style = "std_error",
    level: float = 0.95,
    ddf: Ddf = "satterthwaite",
    information: Information = "auto",
    vcov: Vcov = "model",
    cluster: Any = None,
) -> ModelTable:
    """Models side by side: coefficients, random effects, numbers of rows and groups, and measures of fit.

    Parameters
    ----------
    *results : LMMResult or PooledResult
    names : sequence of str, optional
        Of the models; by default (1), (2), ...
    style : {"std_error", "interval", "statistic", "p_value"}
        What stands below each coefficient.
    level : float
        Of intervals.
    ddf, information, vcov, cluster
        Degrees of freedom and covariance of tests and intervals, see `LMMResult.test`; those of a `PooledResult` are
        its own.

    Returns
    -------
    ModelTable

    Raises
    ------
    LMMError
        For what is not a fit, another number of names than models, or unknown options.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> fits = [flc.lmm(f"Reaction ~ Days + {bar}", data).fit() for bar in ("(1 | Subject)", "(Days | Subject)")]
    >>> print(flc.table(*fits, names=["intercepts", "slopes"]).as_text().splitlines()[2])
    Intercept                  251.41      251.41
    """
    check_level(level)
    if style not in _BELOW:
        raise LMMError(f"style={style!r} is unknown: use {', '.join(map(repr, _BELOW))}")
    if not results:
        raise LMMError("table needs at least one fit: table(result1, result2)")
    titles = tuple(f"({i + 1})" for i in range(len(results))) if names is None else tuple(names)
    if len(titles) != len(results) or len(set(titles)) < len(titles):
        raise LMMError(f"names must be {len(results)} different ones, one for each model, not {list(titles)}")
    columns = []
    for i, result in enumerate(results):
        if isinstance(result, PooledResult):
            columns.append(_pooled_column(result, level))
        elif isinstance(result, Fit):
            columns.append(_column(result, level, (ddf, information, vcov, cluster)))
        else:
            raise LMMError(
                f"table(): model {i + 1} is of type {type(result).__name__!r}, not a fit: give results of fit()"
            )
    first = results[0].results[0] if isinstance(results[0], PooledResult) else results[0]
    below = _BELOW[style].format(level=100.0 * level)
    said = [f"{below[0].upper()}{below[1:]}; {column.said}." for column in columns]
    return ModelTable(titles, style, float(level), (*dict.fromkeys(said), *_warnings(results, titles)), tuple(columns),
                      first.model.library)  # fmt: skip


def _column(result: Fit, level: float, options: tuple[Any, ...]) -> _Column:
    ddf, information, vcov, cluster = options
    robust = sandwich(result, vcov, cluster)
    model = result.model
    numbers: dict[str, Any] = fixed_columns(result, level, ddf, information, robust)
    coefficients = {
        name: {key: float(numbers[key][j]) for key in FIXED[1:]}
        for j, name in enumerate(model.exog_names)
        if not np.isnan(numbers["estimate"][j])
    }
    components: dict[str, float] = {}
    effects = model.exog_re_names
    values = sd_and_cor(model.random.elements, result.covariance[None])[0]
    for element, value in zip(model.random.elements, values.tolist(), strict=True):
        what = (
            f"SD {effects[element.i]}" if element.i == element.j else f"Cor {effects[element.i]}, {effects[element.j]}"
        )
        components[f"{element.term}: {what}"] = value
    residual = model.residual
    if residual is None:
        components[_RESIDUAL] = float(result.sigma)
    else:
        own = residual_parameters(result)
        components |= dict(zip(own.names, own.estimate.tolist(), strict=True)) if len(own.names) <= _FEW else {}
    facts = {"Response": model.response_name, "Estimation": _estimation(result)}
    facts |= {} if residual is None else {"Residuals": residual.term}
    facts |= _sizes(result) | _explained(result)
    if result.stated is None:
        facts |= {"AIC": f"{result.aic:.1f}", "BIC": f"{result.bic:.1f}", "Log-likelihood": f"{result.llf:.1f}"}
    return _Column(coefficients, components, facts, method(ddf, vcov, "" if robust is None else robust.clusters),
                   model.sigma is not None)  # fmt: skip


def _pooled_column(pooled: PooledResult, level: float) -> _Column:
    rows = pooled.columns(level)
    coefficients = {
        name: {key: float(rows[key][j]) for key in FIXED[1:]}
        for j, name in enumerate(pooled.names)
        if not np.isnan(pooled.estimate[j])
    }
    first = pooled.results[0]
    facts = {"Response": first.model.response_name, "Estimation": _estimation(first)}
    facts |= _sizes(first) | {"Imputations": f"{pooled.n_imputations}"}
    return _Column(coefficients, {}, facts, pooled.method)


def _estimation(result: Fit) -> str:
    return "stated" if result.stated is not None else "REML" if result.reml else "ML"


def _sizes(result: Fit) -> dict[str, str]:
    groups = {f"Groups ({name})": f"{count}" for name, count in result.n_groups.items()}
    return {"Observations": f"{result.nobs}"} | groups


def _explained(result: Fit) -> dict[str, str]:
    """Intraclass correlations and R^2, where they are defined."""
    named: dict[str, float] = {}
    if result.model.structure.q:
        shares = icc(result)
        named = {f"ICC ({name})": s for name, s in shares.items()} if isinstance(shares, dict) else {"ICC": shares}
    explained = r2(result)
    values = named | {f"R2 {kind}": value for kind, value in explained.items()}
    return {name: f"{value:.3f}" for name, value in values.items()}


def _warnings(results: Sequence[Any], titles: Sequence[str]) -> Iterator[str]:
    """What readers of the table must know."""
    fits = [(title, r) for title, r in zip(titles, results, strict=True) if isinstance(r, Fit)]
    if len({r.nobs for _, r in fits}) > 1:
        yield "Models of different rows: their criteria are not comparable."
    elif len({r.model.response_name for _, r in fits}) > 1:
        yield "Models of different responses: their criteria are not comparable."
    if len({r.reml for _, r in fits if r.stated is None}) > 1:
        yield "Criteria by REML and by ML are not comparable."
    if len({r.model.exog_names for _, r in fits if r.reml}) > 1:
        yield "Criteria by REML are comparable between models with the same fixed effects only."
    bad = [title for title, r in fits if not r.converged]
    if bad:
        yield f"NOT certified: {', '.join(bad)}."
    for title, r in fits:
        if r.singular:
            yield f"Singular: {title}, {'; '.join(r.singular_components)}."

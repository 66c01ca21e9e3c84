"""Tables of a fit: text, HTML, and one row per estimate."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any

from ..diagnostics.marginal import icc, r2
from ..errors import LMMError
from ..estimation.information import information_used
from ..support.display import Cells, Line, Part, Shown
from ..support.text_tables import (
    GAP,
    aligned_cells,
    degrees_cell,
    estimate_cells,
    p_value_cell,
    statistic_cell,
    text_table,
)
from .maketables import MakeTables
from .random_effects import RandomTables
from .residuals import ResidualTable
from .tidy import FIXED, fixed_columns

if TYPE_CHECKING:
    from ..estimation.fit import Fit
    from ..inference.options import Ddf, Information
    from ..inference.sandwich import Sandwich

__all__ = ["Coefficient", "Summary"]

_WIDTH = 80
_DF_COLUMN = 7  # by which the coefficients may be wider


_LEVELS_NAMED = 5
"""So many levels without rows are named, more are counted."""

_LAWS = {
    "satterthwaite": "t tests and intervals with Satterthwaite's degrees of freedom",
    "kenward-roger": "t tests and intervals by Kenward and Roger's method: adjusted standard errors",
    "kenward-roger-linear": "t tests and intervals by Kenward and Roger's method without second derivatives: adjusted "
    "standard errors",
    "between-within": "t tests and intervals with between-within degrees of freedom",
    "residual": "t tests and intervals with residual degrees of freedom",
    "normal": "z tests and intervals: the uncertainty of the variances is left out",
}


_ROBUST_LAWS = {
    "satterthwaite": _LAWS["satterthwaite"],
    "residual": _LAWS["residual"],
    "normal": "z tests and intervals",
}


@dataclass(frozen=True)
class Coefficient:
    """One fixed effect with its Wald test and confidence limits."""

    name: str
    estimate: float
    std_error: float
    df: float
    statistic: float
    pvalue: float
    conf_low: float
    conf_high: float


@dataclass(frozen=True, repr=False)
class Summary(MakeTables, Shown):
    """What there is to say about a fit on one page; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    title : str
    formula : str or None
        None for a model from arrays.
    nobs, n_dropped : int
        Rows used, and rows left out because of missing values.
    gaps : tuple of (str, int)
        Columns with missing values, and how many.
    unused_levels : tuple of (str, tuple)
        Categorical columns and those of their levels that no row has.
    two_values : (float, float) or None
        The values of a response that has no others.
    weighted, has_offset : bool
    groups : tuple of (str, int)
        Grouping factor and number of levels.
    criterion_name : str
    criterion, llf, aic, bic, r2_marginal, r2_conditional : float
    icc : tuple of (str, float)
        Share of each grouping factor.
    random : RandomTables
        Variances and correlations of the random effects, and their principal components where the fit is singular.
    coefficients : tuple of Coefficient
        Without the dropped columns.
    dropped : tuple of str
        Columns of X that are combinations of those before them.
    level : float
        Of the confidence limits.
    ddf, information : str
        Kind of the degrees of freedom (z tests for "normal"), and of the information behind Kenward-Roger's.
    vcov, clusters : str
        "model", or the kind of the robust covariance and its clusters.
    response : str
        Name of the response.
    converged : bool
    gradient_norm : float
    n_evaluations : int
    message : str
        Of the optimiser.
    iterative : bool
        Whether the fit is by ``method="iterative"``, whose message states Monte Carlo errors.
    singular_components : tuple of str
    stated : bool
        Whether parameters were stated: what speaks of estimates is NaN and not shown, the log-likelihood where there is
        no response.
    residual : ResidualTable or None
        None where residuals are independent.
    """

    title: str
    formula: str | None
    nobs: int
    n_dropped: int
    gaps: tuple[tuple[str, int], ...]
    unused_levels: tuple[tuple[str, tuple[Any, ...]], ...]
    two_values: tuple[float, float] | None
    weighted: bool
    has_offset: bool
    groups: tuple[tuple[str, int], ...]
    criterion_name: str
    criterion: float
    llf: float
    aic: float
    bic: float
    icc: tuple[tuple[str, float], ...]
    r2_marginal: float
    r2_conditional: float
    random: RandomTables
    coefficients: tuple[Coefficient, ...]
    dropped: tuple[str, ...]
    level: float
    ddf: str
    information: str
    converged: bool
    gradient_norm: float
    n_evaluations: int
    message: str
    iterative: bool
    singular_components: tuple[str, ...]
    vcov: str = "model"
    clusters: str = ""
    response: str = "y"
    stated: bool = False
    residual: ResidualTable | None = None

    @classmethod
    def of(
        cls,
        result: Fit,
        level: float = 0.95,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        robust: Sandwich | None = None,
    ) -> Summary:
        """Collect the summary of a fit.

        Parameters
        ----------
        result : LMMResult
        level : float
            Of the confidence limits.
        ddf, information
            Degrees of freedom of tests and limits.
        robust : Sandwich, optional
            Instead of the covariance of the model.

        Returns
        -------
        Summary

        Raises
        ------
        LMMError
            For a level outside (0, 1) or an unknown ddf.
        """
        model = result.model
        fixed = fixed_columns(result, level, ddf, information, robust)
        rows = zip(*(fixed[name] for name in FIXED), strict=True)
        dropped = () if result.model.given else result.dropped_columns
        stated = result.stated is not None
        explained, share = _explained(result)
        return cls(
            title="Linear mixed model at stated parameters"
            if stated
            else f"Linear mixed model fit by {'REML' if result.reml else 'maximum likelihood'}",
            formula=None if model.spec is None else model.spec.formula,
            nobs=result.nobs,
            n_dropped=model.n_dropped,
            gaps=() if model.spec is None else tuple(model.spec.gaps.items()),
            unused_levels=() if model.spec is None else tuple(model.spec.unused.items()),
            two_values=None if stated else model.two_values,
            weighted=model.weighted,
            has_offset=model.has_offset,
            groups=tuple(result.n_groups.items()),
            criterion_name="REML criterion" if result.reml else "Deviance",
            criterion=float(result.criterion) if model.has_response else math.nan,
            llf=float(result.llf) if model.has_response else math.nan,
            aic=math.nan if stated else float(result.aic),
            bic=math.nan if stated else float(result.bic),
            icc=tuple(share.items()),
            r2_marginal=explained["marginal"],
            r2_conditional=explained["conditional"],
            random=RandomTables.of(result),
            coefficients=tuple(Coefficient(name, *map(float, x)) for name, *x in rows if name not in dropped),
            dropped=dropped,
            level=float(level),
            ddf=ddf,
            information=information_used(result, information),
            converged=bool(result.converged),
            gradient_norm=float(result.gradient_norm),
            n_evaluations=int(result.n_evaluations),
            message=result.optimum.message,
            iterative=result.optimum.monte_carlo is not None,
            singular_components=result.singular_components,
            vcov="model" if robust is None else robust.kind,
            clusters="" if robust is None else robust.clusters,
            response=model.response_name,
            stated=stated,
            residual=None if model.residual is None else ResidualTable.of(result),
        )

    # ---- what both forms show ------------------------------------------------------------------

    def _facts(self) -> list[tuple[str, str]]:
        marks = [mark for mark, there in (("weighted", self.weighted), ("with offset", self.has_offset)) if there]
        facts = [("Observations", f"{self.nobs}" + (f" ({', '.join(marks)})" if marks else ""))]
        if self.n_dropped:
            facts.append(("Rows dropped", f"{self.n_dropped} (missing values)"))
        facts += [("Groups", f"{count} ({name})") for name, count in self.groups]
        alone = len(self.icc) == 1
        facts += [("ICC" if alone else f"ICC ({name})", f"{value:.3f}") for name, value in self.icc]
        if not math.isnan(self.r2_marginal):
            facts.append(("R2", f"{self.r2_marginal:.3f} marginal, {self.r2_conditional:.3f} conditional"))
        return facts

    def _criteria(self) -> list[tuple[str, str]]:
        if self.stated:
            return [] if math.isnan(self.llf) else [("Log-likelihood", f"{self.llf:.3f}")]
        values = (
            (self.criterion_name, self.criterion),
            ("Log-likelihood", self.llf),
            ("AIC", self.aic),
            ("BIC", self.bic),
        )
        return [(name, f"{value:.3f}" if abs(value) < 1e7 else f"{value:.1f}") for name, value in values]

    def _fixed_table(self) -> tuple[list[str], list[list[str]]]:
        rows = self.coefficients
        errors = [c.std_error for c in rows]
        if self.stated:
            names, values = [c.name for c in rows], [f"{c.estimate:.6g}" for c in rows]
            header = ["Name", "Value", "SE"]
            return header, [list(row) for row in zip(names, values, estimate_cells(errors, errors, 4), strict=True)]
        cells = [
            [c.name for c in rows],
            estimate_cells([c.estimate for c in rows], errors, 4),
            estimate_cells([c.std_error for c in rows], errors, 4),
            *([] if self.ddf == "normal" else [[degrees_cell(c.df) for c in rows]]),
            aligned_cells([statistic_cell(c.statistic) for c in rows]),
            [p_value_cell(c.pvalue) for c in rows],
            estimate_cells([c.conf_low for c in rows], errors, 3),
            estimate_cells([c.conf_high for c in rows], errors, 3),
        ]
        kind = ["z"] if self.ddf == "normal" else ["df", "t"]
        header = ["Name", "Estimate", "SE", *kind, "p", f"{100 * self.level:g}% CI", ""]
        return header, [list(row) for row in zip(*cells, strict=True)]

    def _notes(self) -> Iterator[str]:
        if self.gaps:
            yield f"Values missing: {', '.join(f'{count} in {name}' for name, count in self.gaps)}."
        if self.unused_levels:
            yield f"Levels without rows, left out: {'; '.join(starmap(_unused, self.unused_levels))}."
        if self.two_values is not None:
            low, high = self.two_values
            yield (
                f"The response has two values, {low:g} and {high:g}: effects are differences of probabilities, and the "
                "residual variance, which depends on them, is taken for constant. Standard errors by vcov='CR2' do not "
                "rest on that; for odds fit a generalised model (glmer of lme4, Bambi, GEE of statsmodels)."
            )
        if self.dropped:
            yield f"Dropped, being combinations of the columns before them: {', '.join(self.dropped)}."
        if self.stated:
            yield "Parameters stated, not estimated; SE: of generalised least squares estimates on this design."
            return
        if self.coefficients:
            adjusted = self.ddf.startswith("kenward-roger")
            told = (
                self.information in ("expected", "observed")
                if adjusted and self.residual is not None
                else (self.information == "observed" and self.residual is None)
            )
            extra = f" ({self.information} information)" if told else ""
            if self.vcov == "model":
                yield f"{_LAWS[self.ddf]}{extra}."
            else:
                yield f"{_ROBUST_LAWS[self.ddf]}, by the robust covariance {self.vcov} over {self.clusters}."
        if self.singular_components:
            reduced = self.ddf.startswith("kenward-roger") and self.information != "expected"
            known = self.vcov == "model" and (self.ddf == "satterthwaite" or reduced)
            extra = ", and the degrees of freedom take it for known" if known and self.coefficients else ""
            yield f"Singular fit: {'; '.join(self.singular_components)}. The estimate lies on the boundary{extra}."
            yield 'The page "Singular: what now?" of the documentation says what can be done.'
        count = f"{self.n_evaluations} evaluation{'s' * (self.n_evaluations != 1)}"
        if self.iterative:
            yield f"By method='iterative', {count}: {self.message}."
        elif self.converged:
            yield f"Optimum certified after {count} (gradient {_gradient(self.gradient_norm)})."
        else:
            yield f"Optimum NOT certified after {count}: {self.message.removeprefix('not certified: ')}."

    # ---- text ----------------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = [self.title]
        if self.formula is not None:
            lines += textwrap.wrap(
                " ".join(self.formula.split()), _WIDTH, subsequent_indent="    ", break_long_words=False
            )
        lines += ["", *_side_by_side(self._facts(), self._criteria())]
        if self.random.components:
            lines += ["", *self.random.lines(_WIDTH)]
        if self.residual is not None:
            lines += self.residual.lines()
        if self.coefficients:
            lines += ["", "Fixed effects", *_fixed_text(*self._fixed_table())]
        lines.append("")
        for note in self._notes():
            lines += textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)
        return "\n".join(line.rstrip() for line in lines)

    def _shown(self) -> Iterator[Part]:
        yield Line(self.title, "title")
        if self.formula is not None:
            yield Line(self.formula, "code")
        facts, criteria = self._facts(), self._criteria()
        blank = ("", "")
        pairs = [
            [*(facts[i] if i < len(facts) else blank), *(criteria[i] if i < len(criteria) else blank)]
            for i in range(max(len(facts), len(criteria)))
        ]
        yield Cells(None, pairs, left=3)
        yield from self.random.parts(_WIDTH)
        if self.residual is not None:
            yield from self.residual.parts()
        if self.coefficients:
            yield Line("Fixed effects", "caption")
            yield Cells(*self._fixed_table())
        yield from self._notes()


# ---- numbers -----------------------------------------------------------------------------------


def _unused(column: str, levels: tuple[Any, ...]) -> str:
    """How many levels of a column have no rows, and which where they are few."""
    few = len(levels) <= _LEVELS_NAMED
    return f"{len(levels)} of {column}" + (f" ({', '.join(map(str, levels))})" if few else "")


def _gradient(value: float) -> str:
    return f"{value:.0e}" if value else "0"


# ---- layout ------------------------------------------------------------------------------------


def _side_by_side(left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]]) -> list[str]:
    """Two lists of names and values; values on the right have their decimal points aligned."""
    name_left = max(len(name) for name, _ in left) + 1
    name_right = max((len(name) for name, _ in right), default=0) + 1
    value_right = max((len(value) for _, value in right), default=0)
    texts = [f"{name + ':':<{name_left}} {value}" for name, value in left]
    room = _WIDTH - name_right - value_right - 1
    start = min(room, max(44, max(map(len, texts)) + 4))
    lines = []
    for i in range(max(len(left), len(right))):
        text = texts[i] if i < len(left) else ""
        if i < len(right):
            name, value = right[i]
            text = f"{text:<{start}}{name + ':':<{name_right}} {value:>{value_right}}"
        lines.append(text)
    return lines


def _fixed_text(header: list[str], rows: list[list[str]]) -> list[str]:
    """The table of coefficients; a name that leaves no room for the numbers takes a line of its own."""
    numbers = text_table(header[1:], [row[1:] for row in rows], left=0)
    room = max(_WIDTH + _DF_COLUMN - max(map(len, numbers)) - len(GAP), 12)
    width = max((len(row[0]) for row in rows if len(row[0]) <= room), default=0)
    width = max(width, len(header[0]))
    lines = [f"{header[0]:<{width}}{GAP}{numbers[0]}"]
    for row, line in zip(rows, numbers[1:], strict=True):
        name = row[0]
        if len(name) > width:
            lines.append(name)
            name = ""
        lines.append(f"{name:<{width}}{GAP}{line}")
    return lines


def _explained(result: Fit) -> tuple[dict[str, float], dict[str, float]]:
    """R^2 and intraclass correlations; where the rows are not held, what their sums do not tell is left out."""
    unknown = {"marginal": math.nan, "conditional": math.nan}
    try:
        share = icc(result) if result.model.structure.q else {}
        shares = share if isinstance(share, dict) else {result.model.grouping.name: share}
        return r2(result), shares
    except LMMError:
        if not result.model.streamed:
            raise
    return unknown, {}

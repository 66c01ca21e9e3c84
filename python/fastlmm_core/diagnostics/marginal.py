"""The marginal covariance as a function of the random-effects variables: variance, correlation, shape.

Observations of a group at rows z and z' have covariance z'Gz' (+ sigma^2 for one with itself); with several grouping
factors those of one level of each have the sum over the factors.  With a random
intercept and slope the variance is the parabola g00 + 2 g01 x + g11 x^2 + sigma^2 with its minimum at -g01 / g11
(Fitzmaurice, Laird and Ware 2011, Applied Longitudinal Analysis, ch. 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..estimation.column_moments import mean_residual_variance, mean_squares, variance_along
from ..estimation.whitening import rows_covariance
from ..prediction.new_rows import random_design
from ..support.arguments import checked
from ..support.checks import float_array, plain_array
from ..support.display import LINES, Cells, Shown, first_lines
from ..support.types import Array
from ..tables.columns import Table

if TYPE_CHECKING:
    from ..design.grouping import Grouping
    from ..estimation.fit import Fit
    from ..estimation.model import Model

__all__ = [
    "LeastVariance",
    "MarginalCovariance",
    "icc",
    "icc_at",
    "least_variance_time",
    "marginal_correlation",
    "marginal_covariance",
    "marginal_covariance_at",
    "r2",
    "random_rows",
    "slope_columns",
]


def marginal_covariance(result: Fit, subject: Any, factor: str | None = None) -> Array:
    """See `LMMResult.marginal_covariance`."""
    return rows_covariance(result, _rows_of(result.model, subject, factor))


def marginal_correlation(result: Fit, subject: Any, factor: str | None = None) -> Array:
    """See `LMMResult.marginal_correlation`."""
    covariance = marginal_covariance(result, subject, factor)
    sd = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(sd, sd))


def icc(result: Fit) -> Any:
    """See `LMMResult.icc`."""
    random = _mean_random_variance(result)
    total = sum(random.values()) + _mean_residual_variance(result)
    if not result.model.structure.q:
        raise LMMError("icc: the model has no random effects; marginal_correlation has the correlations of residuals")
    shares = {name: value / total for name, value in random.items()}
    return shares if len(shares) > 1 else next(iter(shares.values()))


def r2(result: Fit) -> dict[str, float]:
    """See `LMMResult.r2`."""
    fixed = variance_along(result.model, np.nan_to_num(result.beta))
    random = sum(_mean_random_variance(result).values())
    total = fixed + random + _mean_residual_variance(result)
    return {"marginal": fixed / total, "conditional": (fixed + random) / total}


def _rows_of(model: Model, subject: Any, factor: str | None) -> NDArray[np.intp]:
    searched = model.factors[::-1] if factor is None else (model.factor(factor),)
    for grouping, *_ in searched:
        at = np.flatnonzero(grouping.index == _position(grouping, subject))
        if len(at):
            return at
    names = " or ".join(f.grouping.name for f in reversed(searched))
    shown = repr(subject) if len(repr(subject)) < 40 else f"of type {type(subject).__name__!r}"
    raise LMMError(f"subject={shown}: {names} has no such level among the rows used")


def _position(grouping: Grouping, subject: Any) -> int:
    """Position of a level, -1 for what is none."""
    try:
        return int(grouping.labels.tolist().index(np.array([subject]).tolist()[0]))
    except Exception:  # whatever things of other types raise when they are compared
        return -1


def _mean_residual_variance(result: Fit) -> float:
    """Residual variance, averaged over the observations, so that the unit of weights does not matter."""
    return result.sigma2 * mean_residual_variance(result.model, result.phi)


def _mean_random_variance(result: Fit) -> dict[str, float]:
    """Variance z'Gz of each factor, averaged over the observations."""
    products = mean_squares(result.model) * result.covariance
    return {f.grouping.name: float(np.sum(products[f.columns, f.columns])) for f in result.model.factors}


@checked
@dataclass(frozen=True, repr=False)
class MarginalCovariance(Shown):
    """Second moments of k observations of one group, one at each of k points.

    Attributes
    ----------
    Z : (k, q) array
        Rows of the random-effects design.
    random : (k, k) array
        Z G Z', without the residual variance.
    sigma2 : float
        Residual variance (of an observation of weight 1).
    """

    Z: Array
    random: Array
    sigma2: float

    @property
    def covariance(self) -> Array:
        """Z G Z' + sigma^2 I (k, k)."""
        return np.asarray(self.random + self.sigma2 * np.eye(len(self.random)))

    @property
    def variance(self) -> Array:
        """Variance at each point (k,)."""
        return np.asarray(np.diag(self.random) + self.sigma2)

    @property
    def correlation(self) -> Array:
        """Correlations of observations at different points, 1 on the diagonal (k, k)."""
        sd = np.sqrt(self.variance)
        out = self.random / np.outer(sd, sd)
        np.fill_diagonal(out, 1.0)
        return np.asarray(out)

    def _shown(self) -> Iterator[str | Cells]:
        k, wide = len(self.Z), min(len(self.Z), LINES)
        points = [", ".join(f"{value:g}" for value in row) for row in self.Z.tolist()]
        sd, share, correlation = np.sqrt(self.variance), self.icc, self.correlation
        yield f"Standard deviations and correlations of observations of one group at {k} points"
        header = ["z", "SD", "ICC", *(points[:wide] if k > 1 else [])]
        rows = [
            [points[i], f"{sd[i]:.4g}", f"{share[i]:.3f}", *(f"{r:.3f}" for r in correlation[i, :wide] if k > 1)]
            for i in range(min(k, LINES))
        ]
        yield Cells(header, first_lines(rows, count=k))

    @property
    def icc(self) -> Array:
        """Share of the random effects in the variance, the correlation of two observations at one point (k,)."""
        random = np.diag(self.random)
        return np.asarray(random / (random + self.sigma2))


@checked
@dataclass(frozen=True, repr=False)
class LeastVariance(Shown):
    """Where the variance around the population line is smallest.

    Attributes
    ----------
    variable : str
        The column with the random slope.
    at : float
        -g01 / g11; NaN where the slope does not vary.
    variance : float
        There, with the residual variance.
    observed : (low, high)
        Range of the variable in the data.
    shape : str
        "fan-out" (the lines spread as the variable grows), "fan-in", "both" (they come together and spread again
        within the observed range) or "parallel".
    """

    variable: str
    at: float
    variance: float
    observed: tuple[float, float]
    shape: str

    def __float__(self) -> float:
        return self.at

    def _shown(self) -> Iterator[str | Cells]:
        low, high = self.observed
        if self.shape == "parallel":
            yield f"The slope of {self.variable} does not vary: the lines are parallel, the variance is constant."
            return
        where = f"the variance is smallest at {self.variable} = {self.at:.4g} ({self.variance:.5g})"
        place = "within" if low <= self.at <= high else "below" if self.at < low else "above"
        shapes = {"fan-out": "the lines fan out", "fan-in": "the lines fan in", "both": "the lines fan in, then out"}
        yield f"{shapes[self.shape].capitalize()}: {where}, {place} the observed range {low:.4g} to {high:.4g}."


def slope_columns(model: Model) -> NDArray[np.intp]:
    """Positions of the columns of Z that are not constant but one variable: one, or one for each of several factors.

    Raises
    ------
    LMMError
        If there is none or there are several variables.
    """
    columns = model.exog_re.T
    varying = [j for j, column in enumerate(columns) if (column != column[0]).any()]
    if not varying or any((columns[j] != columns[varying[0]]).any() for j in varying):
        names = ", ".join(model.exog_re_names)
        raise LMMError(
            f"the random effects ({names}) must be a slope of one variable, with or without an intercept, for this; "
            "give rows of Z or a table instead where the function takes them"
        )
    return np.array(varying)


def random_rows(result: Fit, at: Any) -> Array:
    """Rows of the random-effects design at new points.

    Parameters
    ----------
    result : LMMResult
    at : table, (k,) or (k, q) array
        For a model from a formula a table of the variables in the random effects (groups are not needed) or the values
        of the only one; for a model from arrays rows of Z or, with a random slope of one variable, its values.

    Returns
    -------
    (k, q) array

    Raises
    ------
    LMMError
        For anything else.
    """
    result.model.needs_independent_residuals("this")
    model = result.model
    if not hasattr(at, "keys") and not hasattr(at, "column_names"):
        at = at if hasattr(at, "columns") else plain_array(at, "at")
    if model.spec is not None:
        if hasattr(at, "columns") or hasattr(at, "keys") or hasattr(at, "column_names"):
            return random_design(model, Table.of(at, "at"))
        names = model.spec.random_variables
        if len(names) == 1 and np.ndim(at) < 2:
            return random_design(model, Table({names[0]: np.atleast_1d(plain_array(at, "at"))}, "at"))
        if np.ndim(at) < 2:
            used = ", ".join(names) if names else "none but the intercept"
            raise LMMError(f"at: the variables in the random effects are {used}; give a table with these columns")
    values = np.atleast_1d(plain_array(at, "at"))
    q = model.structure.q
    if values.ndim == 1 and q > 1:
        x = float_array(values, "at", 1)
        out = np.repeat(model.exog_re[:1], len(x), axis=0)
        out[:, slope_columns(model)] = x[:, None]
    else:
        out = float_array(values, "at", 2)
    if out.shape[1] != q:
        raise LMMError(f"at must have the {q} columns of Z ({', '.join(model.exog_re_names)}), not {out.shape[1]}")
    if not np.isfinite(out).all():
        raise LMMError(f"at is not finite in row {int(np.argwhere(~np.isfinite(out))[0, 0])}; remove such rows")
    return out


def marginal_covariance_at(result: Fit, at: Any) -> MarginalCovariance:
    """Variances and correlations of observations of one group (one level of each factor) at given points.

    Parameters
    ----------
    result : LMMResult
    at : table, (k,) or (k, q) array
        See `random_rows`; e.g. times.

    Returns
    -------
    MarginalCovariance

    Raises
    ------
    LMMError
        For points that are not those of the model's random effects.
    """
    rows = random_rows(result, at)
    turned = rows @ result.relative_factor
    return MarginalCovariance(rows, result.sigma2 * (turned @ turned.T), result.sigma2)


def icc_at(result: Fit, at: Any) -> Array:
    """Intraclass correlation z'Gz / (z'Gz + sigma^2) at given points; with random slopes it depends on them.

    Parameters
    ----------
    result : LMMResult
    at : table, (k,) or (k, q) array
        See `random_rows`.

    Returns
    -------
    (k,) array
        Goldstein, Browne and Rasbash 2002, Understanding Statistics 1, 223-231.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.marginal import icc_at
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> icc_at(fit, [0, 9]).round(3)
    array([0.483, 0.847])
    """
    rows = random_rows(result, at)
    random = result.sigma2 * np.sum((rows @ result.relative_factor) ** 2, axis=1)
    return np.asarray(random / (random + result.sigma2))


def least_variance_time(result: Fit) -> LeastVariance:
    """Where the variance of a random slope model is smallest, and how the lines of the groups spread.

    Parameters
    ----------
    result : LMMResult
        Of a model with a random slope of one variable.

    Returns
    -------
    LeastVariance

    Raises
    ------
    LMMError
        For other random effects.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from fastlmm_core.diagnostics.marginal import least_variance_time
    >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> least_variance_time(fit)
    The lines fan out: the variance is smallest at Days = -0.2738 (1264.4), below the observed range 0 to 9.
    """
    result.model.needs_independent_residuals("least_variance_time()")
    model = result.model
    slope = slope_columns(model)
    column = model.exog_re[:, slope[0]]
    low, high = float(column.min()), float(column.max())
    # the constant columns together make the intercept of a line
    level = model.exog_re[0].copy()
    level[slope] = 0.0
    steep = np.zeros(len(level))
    steep[slope] = 1.0
    a, b = level @ result.relative_factor, steep @ result.relative_factor
    g11 = float(b @ b)
    at = float(-(a @ b) / g11) if g11 > 0.0 else float("nan")
    least = a + at * b if g11 > 0.0 else a
    shape = "parallel" if g11 == 0.0 else "fan-out" if at <= low else "fan-in" if at >= high else "both"
    variance = result.sigma2 * (float(least @ least) + 1.0)
    return LeastVariance(model.exog_re_names[slope[0]], at, variance, (low, high), shape)

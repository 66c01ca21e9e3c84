"""What a simulation study says of an estimator, each figure with its Monte Carlo standard error.

Formulas and words are those of Morris, White and Crowther (2019), Using simulation studies to evaluate statistical
methods, Stat. Med. 38, 2074-2102, table 6, as R's rsimsum and Stata's simsum have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...covariance.elements import element_names, sd_and_cor
from ...errors import LMMError
from ...support.arguments import checked
from ...support.checks import check_level, number_array
from ...support.display import Cells, Shown
from ...support.types import Array
from ...tables.columns import native_frame

if TYPE_CHECKING:
    from ...design.design import Design
    from ...estimation.fit import Fit

__all__ = ["Fits", "StudySummary", "summarise"]


MEASURES = ("bias", "emp_se", "mse", "model_se", "relative_error", "cover", "bias_eliminated_cover", "rejection")
"""Performance measures, each with a Monte Carlo standard error."""


@checked
@dataclass(frozen=True, repr=False)
class StudySummary(Shown):
    """Performance of the estimates of a simulation study.

    Attributes
    ----------
    names : tuple of str
        Fixed effects, then standard deviations, correlations and sigma.
    truth, mean : (k,) arrays
        True values, NaN where none was given, and means of the estimates.
    bias : (k,) array
        Mean of the estimates less the truth.
    emp_se : (k,) array
        Standard deviation of the estimates.
    mse : (k,) array
        Mean squared error.
    model_se : (k,) array
        Root of the mean squared standard error; of fixed effects, as all that follows.
    relative_error : (k,) array
        100 (model_se / emp_se - 1), in percent.
    cover, bias_eliminated_cover : (k,) arrays
        Share of the intervals that contain the truth, and the mean of the estimates.
    rejection : (k,) array
        Share of the tests of zero that reject: power, or type I error where zero is the truth.
    mcse : dict
        Measure to the Monte Carlo standard errors (k,).
    n, n_lost : int
        Certified fits, of which all figures are, and others.
    level, alpha : float
    """

    names: tuple[str, ...]
    truth: Array
    mean: Array
    bias: Array
    emp_se: Array
    mse: Array
    model_se: Array
    relative_error: Array
    cover: Array
    bias_eliminated_cover: Array
    rejection: Array
    mcse: Mapping[str, Array]
    n: int
    n_lost: int
    level: float
    alpha: float
    _library: str = field(repr=False)

    def to_frame(self) -> Any:
        """One row per parameter: term, truth, mean, and each measure with its Monte Carlo standard error beside it."""
        columns: dict[str, Any] = {"term": list(self.names), "truth": self.truth, "mean": self.mean}
        for name in MEASURES:
            columns |= {name: getattr(self, name), f"{name}_mcse": self.mcse[name]}
        return native_frame(self._library, columns)

    def _shown(self) -> Iterator[str | Cells]:
        lost = f", {self.n_lost} not certified" if self.n_lost else ""
        yield f"Simulation study of {self.n:,} fits{lost} (Monte Carlo standard errors in brackets)"
        shown = ("bias", "emp_se", "model_se", "cover", "rejection")
        rows = [
            [name, f"{self.truth[j]:.4g}", *(_cell(getattr(self, m)[j], self.mcse[m][j]) for m in shown)]
            for j, name in enumerate(self.names)
        ]
        titles = ["bias", "empirical SE", "model SE", f"coverage of {100 * self.level:g} %", f"p < {self.alpha:g}"]
        yield Cells(["", "truth", *titles], rows)

    def __repr__(self) -> str:
        return f"<StudySummary: {', '.join(self.names)}; {self.n} fits>"


def _cell(value: float, error: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g} ({error:.1g})"


class Fits(NamedTuple):
    """Of all fits of a study.

    Attributes
    ----------
    design : Design
        With the names of the parameters.
    params, covariance, sigma2 : (n, p), (n, q, q) and (n,) arrays
    converged : (n,) bool array
    table : mapping of str to (n, p) arrays
        std_error, conf_low, conf_high and p_value of the coefficients.
    """

    design: Design
    params: Array
    covariance: Array
    sigma2: Array
    converged: NDArray[np.bool_]
    table: Mapping[str, Array]


def summarise(fits: Fits, truth: Fit | Mapping[str, float] | Any, level: float, alpha: float) -> StudySummary:
    """See `BatchResult.summarise`."""
    check_level(level)
    if not 0.0 < alpha < 1.0:
        raise LMMError(f"alpha={alpha} must lie between 0 and 1, e.g. 0.05")
    design, params = fits.design, fits.params
    # what some of the fits do not have, of others' coefficients, is not compared
    unknown = np.isnan(params) & ~np.isnan(params).all(axis=0)
    good = np.flatnonzero(fits.converged & ~unknown.any(axis=1))
    n = len(good)
    if n < 2:
        raise LMMError(f"summarise() needs two certified fits or more, of {len(params)} there are {n}")
    fixed = tuple(design.exog_names)
    p = len(fixed)
    elements = design.random.elements
    names = (*fixed, *element_names(elements))
    columns = [params, sd_and_cor(elements, fits.covariance), np.sqrt(fits.sigma2)]
    if design.residual is not None:
        # residuals with a structure have no one standard deviation
        names, columns = names[:-1], columns[:-1]
    estimates = np.column_stack(columns)[good]
    true = _truth(p, truth, names)
    error, low, high, pvalue = (fits.table[name][good] for name in ("std_error", "conf_low", "conf_high", "p_value"))
    k = len(names)
    mean, gap = estimates.mean(axis=0), estimates - true
    emp = estimates.std(axis=0, ddof=1)
    squared = gap**2
    found: dict[str, Array] = {"bias": mean - true, "emp_se": emp, "mse": squared.mean(axis=0)}
    mcse: dict[str, Array] = {
        "bias": emp / np.sqrt(n),
        "emp_se": emp / np.sqrt(2.0 * (n - 1)),
        "mse": squared.std(axis=0, ddof=1) / np.sqrt(n),
    }
    mean_square, spread = (error**2).mean(axis=0), (error**2).var(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.sqrt(mean_square)
        ratio = own / emp[:p]
        own_mcse = np.sqrt(spread / (4.0 * n * mean_square))
        relative_mcse = 100.0 * ratio * np.sqrt(spread / (4.0 * n * mean_square**2) + 0.5 / (n - 1))
    of_fixed = {"model_se": (own, own_mcse), "relative_error": (100.0 * (ratio - 1.0), relative_mcse)}
    known = ~np.isnan(error[0]) if n else np.zeros(p, dtype=bool)
    for name, inside in (
        ("cover", (low <= true[:p]) & (true[:p] <= high)),
        ("bias_eliminated_cover", (low <= mean[:p]) & (mean[:p] <= high)),
        ("rejection", pvalue < alpha),
    ):
        share = np.where(known, inside.mean(axis=0), np.nan)
        if name == "cover":
            share = np.where(np.isnan(true[:p]), np.nan, share)
        of_fixed[name] = share, np.sqrt(share * (1.0 - share) / n)
    for name, (value, se) in of_fixed.items():
        found[name], mcse[name] = np.full(k, np.nan), np.full(k, np.nan)
        found[name][:p], mcse[name][:p] = value, se
    return StudySummary(
        names=names, truth=true, mean=mean, **found, mcse=mcse, n=n, n_lost=len(params) - n, level=level, alpha=alpha,
        _library=design.library,
    )  # fmt: skip


def _truth(p: int, truth: Any, names: tuple[str, ...]) -> Array:
    """True values in the order of the names; NaN where none is given."""
    out = np.full(len(names), np.nan)
    if hasattr(truth, "sigma2") and hasattr(truth, "beta"):
        values = dict(zip(truth.model.exog_names, np.asarray(truth.beta, dtype=float).tolist(), strict=True))
        elements = truth.model.random.elements
        own = [*sd_and_cor(elements, truth.covariance[None])[0].tolist(), float(np.sqrt(truth.sigma2))]
        known = values | dict(zip(element_names(elements), own, strict=True))
        structured = truth.model.residual is not None
        if structured:
            known["sigma"] = np.nan
        # what the model that generates does not have is zero there, but for variances that its residuals may make up
        for j, name in enumerate(names):
            zero = j < p or (name.startswith("sd_") and not structured)
            out[j] = known.get(name, 0.0 if zero else np.nan)
        return out
    if isinstance(truth, Mapping):
        unknown = [name for name in truth if name not in names]
        if unknown:
            raise LMMError(f"truth: there is no {unknown[0]!r}; the parameters are {', '.join(names)}")
        for name, value in truth.items():
            out[names.index(name)] = float(number_array(value, f"truth[{name!r}]"))
        return out
    given = number_array(truth, "truth")
    if given.shape not in ((p,), (len(names),)):
        raise LMMError(
            f"truth must be the result that generates the data, names to values, or an array of the {p} coefficients, "
            f"not of shape {given.shape}"
        )
    out[: len(given)] = given
    return out

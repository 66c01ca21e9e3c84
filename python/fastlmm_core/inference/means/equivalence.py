"""Equivalence tests: whether estimates are within a margin of a value, and not only not shown to differ from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import LMMError
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.distributions import quantile, two_sided_p
from ...support.types import Array
from ...tables.columns import native_frame

__all__ = ["Equivalence", "equivalence"]


@checked
@dataclass(frozen=True, repr=False)
class Equivalence(Shown):
    """Two one-sided tests of each estimate; prints as text.

    Attributes
    ----------
    labels : dict
        What each row stands for.
    estimate, std_error, df : (n,) array
    conf_low, conf_high : (n,) array
        Of level 1 - 2 alpha: within the margins exactly where the test rejects at alpha.
    statistic : (n,) array
        t of the test that is further from rejecting.
    pvalues : (n,) array
        Not adjusted: rejecting all of several hypotheses needs no adjustment.
    margins : tuple of float
    alpha : float
    """

    labels: dict[str, list[Any]]
    estimate: Array
    std_error: Array
    df: Array
    conf_low: Array
    conf_high: Array
    statistic: Array
    pvalues: Array
    margins: tuple[float, float]
    alpha: float
    _library: str = field(repr=False)

    def to_frame(self) -> Any:
        """A table in the library of the caller's data: labels, estimate, std_error, df, conf_low, conf_high,
        statistic, p_value.
        """
        columns = {name: getattr(self, name) for name in ("estimate", "std_error", "df", "conf_low", "conf_high")}
        tests = {"statistic": self.statistic, "p_value": self.pvalues}
        return native_frame(self._library, {**self.labels, **columns, **tests})

    def _shown(self) -> Iterator[str | Cells]:
        from ...support.text_tables import aligned_cells, estimate_cells, p_value_cell, statistic_cell

        errors = self.std_error.tolist()
        columns = [[str(value) for value in values] for values in self.labels.values()]
        columns += [estimate_cells(v.tolist(), errors, 4) for v in (self.estimate, self.conf_low, self.conf_high)]
        columns += [aligned_cells([statistic_cell(v) for v in self.statistic.tolist()])]
        columns += [[p_value_cell(v) for v in self.pvalues.tolist()]]
        level = f"{100.0 * (1.0 - 2.0 * self.alpha):g}% CI"
        rows = [list(row) for row in zip(*columns, strict=True)]
        yield Cells([*self.labels, "Estimate", level, "", "t", "p"], rows, len(self.labels))
        low, high = self.margins
        yield f"Equivalence: two one-sided tests of {low:g} < estimate < {high:g}; p-values are not adjusted."


def equivalence(
    labels: dict[str, list[Any]],
    numbers: tuple[Array, Array, Array],
    margin: float | tuple[float, float],
    alpha: float,
    library: str,
) -> Equivalence:
    """Test whether estimates lie within margins (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680).

    Parameters
    ----------
    labels : dict
    numbers : tuple of (n,) arrays
        Estimates, standard errors and degrees of freedom; NaN where there is none.
    margin : float or pair of float
        Half the width of the interval around zero, or its ends.
    alpha : float
        Level of each of the one-sided tests.
    library : str
        Of the caller's data.

    Returns
    -------
    Equivalence

    Raises
    ------
    LMMError
        For margins that are no interval, and levels that are none or above one quarter.
    """
    if not 0.0 < alpha <= 0.25:
        raise LMMError(f"alpha={alpha} must lie between 0 and 0.25: it is the level of each one-sided test, e.g. 0.05")
    try:
        low, high = (-float(margin), float(margin)) if np.ndim(margin) == 0 else map(float, margin)  # type: ignore
    except (TypeError, ValueError) as error:
        raise LMMError(f"margin must be a positive number, or the two ends of an interval, not {margin!r}") from error
    if not low < high:
        raise LMMError(f"margin={margin!r} leaves no interval; give a positive number, or its lower and upper end")
    estimate, std_error, df = numbers
    with np.errstate(invalid="ignore", divide="ignore"):
        # standard errors inside the nearer end: evidence of equivalence where it is large
        inside = np.minimum(estimate - low, high - estimate) / std_error
    half = 0.5 * two_sided_p(inside, df)
    width = quantile(1.0 - alpha, df) * std_error
    return Equivalence(
        labels=labels, estimate=estimate, std_error=std_error, df=df, conf_low=estimate - width,
        conf_high=estimate + width, statistic=inside, pvalues=np.where(inside < 0.0, 1.0 - half, half),
        margins=(low, high), alpha=alpha, _library=library,
    )  # fmt: skip

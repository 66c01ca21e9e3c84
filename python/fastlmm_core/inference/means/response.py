"""Marginal means and their comparisons on the scale of the response before its transformation.

With normal errors the exact relations are: y = b^eta has the median b^m and the mean exp(m log b + v log(b)² / 2),
y = eta² the median m² and the mean m² + v, where eta has mean m and the variance v of random effects and residual.
Standard errors are by the delta method, limits are those of m, transformed; v is taken as known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import LMMError
from ...formula.response_scale import back_transform
from ...support.hints import option
from ...support.types import Array

if TYPE_CHECKING:
    from ...estimation.fit import Fit

__all__ = ["TRANSFORMS", "ResponseScale", "response_scale"]


TRANSFORMS = ("none", "median", "mean")
"""On which scale means are given; "response" stands for "median"."""

_LOG_OF_BASE = {"log": 1.0, "log1p": 1.0, "log2": float(np.log(2.0)), "log10": float(np.log(10.0))}


class ResponseScale(NamedTuple):
    """The way from the scale of the model to that of the response.

    Attributes
    ----------
    written, name : str
        The response in the formula, and what it is a transformation of.
    kind : {"log", "log1p", "log2", "log10", "sqrt"}
    variance : float
        Zero for medians.
    """

    written: str
    name: str
    kind: str
    variance: float

    @property
    def what(self) -> str:
        """What of the response is meant."""
        return "mean" if self.variance else "median"

    def means(self, found: dict[str, Any]) -> dict[str, Any]:
        """Estimates of means, as `Estimates` holds them, on the scale of the response."""
        estimate = found["estimate"]
        slope = 2.0 * np.abs(estimate) if self.kind == "sqrt" else self._grow(estimate) * _LOG_OF_BASE[self.kind]
        how = f", with the variance {self.variance:.4g} of {self.written}" if self.variance else ""
        what = f"{self.what.capitalize()}s of {self.name}"
        note = f"{what}, from means of {self.written}{how}; standard errors by the delta method."
        return {
            **found,
            "estimate": self.back(estimate),
            "std_error": slope * found["std_error"],
            "conf_low": self.back(found["conf_low"]),
            "conf_high": self.back(found["conf_high"]),
            "notes": (note, *found["notes"]),
        }

    def comparisons(self, found: dict[str, Any], weights: Array) -> dict[str, Any]:
        """Estimates of comparisons: ratios where these are of logarithms and their weights add to zero."""
        zero = np.abs(weights.sum(axis=1)).max() < 1e-9
        if self.kind == "sqrt" or not zero:
            return {**found, "notes": (f"Comparisons of {self.written}.", *found["notes"])}
        log = _LOG_OF_BASE[self.kind]
        of = f"1 + {self.name}" if self.kind == "log1p" else self.name
        ratio = np.exp(log * found["estimate"])
        return {
            **found,
            "estimate": ratio,
            "std_error": log * ratio * found["std_error"],
            "conf_low": np.exp(log * found["conf_low"]),
            "conf_high": np.exp(log * found["conf_high"]),
            "notes": (f"Ratios of {of}, from differences of {self.written}; tests of ratio = 1.", *found["notes"]),
        }

    def _grow(self, m: Array) -> Array:
        log = _LOG_OF_BASE[self.kind]
        return np.asarray(np.exp(log * m + 0.5 * log * log * self.variance))

    def back(self, m: Array) -> Array:
        """Values on the scale of the response of means, or limits, on that of the model."""
        if self.kind == "sqrt":
            return np.asarray(np.where(np.isnan(m), np.nan, np.maximum(m, 0.0) ** 2 + self.variance))
        return self._grow(m) - (1.0 if self.kind == "log1p" else 0.0)


def response_scale(result: Fit, transform: str) -> ResponseScale | None:
    """The scale of the response; None where that of the model is asked for.

    Parameters
    ----------
    result : LMMResult
    transform : {"none", "response", "median", "mean"}

    Returns
    -------
    ResponseScale or None

    Raises
    ------
    LMMError
        For unknown transforms, responses without a known transformation, and means where the variance of the response
        differs between rows.
    """
    known = (*TRANSFORMS, "response")
    if transform not in known:
        raise LMMError(
            f"transform={transform!r} is unknown: use one of {', '.join(known)}{option('transform', transform, known)}"
        )
    if transform == "none":
        return None
    written = result.model.response_name
    found = back_transform(written)
    if found is None:
        raise LMMError(
            f"transform={transform!r}: the response {written!r} is no transformation that can be undone; write it in "
            "the formula as log(y), log2(y), log10(y), np.log1p(y) or np.sqrt(y)"
        )
    kind = written.replace(" ", "").removeprefix("np.").split("(")[0]
    return ResponseScale(written, found[0], kind, _variance(result) if transform == "mean" else 0.0)


def _variance(result: Fit) -> float:
    """Variance of the response around its mean, which must be the same in all rows."""
    Z, of_rows = result.model.exog_re, result.residual_variances
    variance = np.einsum("ni,ij,nj->n", Z, result.covariance, Z) + of_rows
    if np.ptp(variance) > 1e-8 * variance.max():
        raise LMMError(
            "transform='mean': the variance of the response differs between rows (random slopes, weights, variances by "
            "visit), and with it the way from medians to means; use transform='median'"
        )
    return float(variance[0])

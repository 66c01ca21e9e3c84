"""Marginal means and contrasts of fits of imputed data sets, by Rubin's rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.arguments import checked
from ...support.display import Part
from ...support.types import Array
from ..means.contrasts import Method, contrast_weights
from ..means.families import adjusted, adjustment
from ..means.means import Estimates, MarginalMeans, emmeans, slopes
from ..means.multiplicity import method_name
from .rubin import Imputed, rubin

__all__ = ["PooledEstimates", "PooledMeans", "pooled_means"]


@checked
@dataclass(frozen=True, repr=False)
class PooledEstimates(Estimates):
    """Estimates over imputations; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    fraction_missing : (n,) array
        Fraction of the information about each estimate that is missing.
    """

    fraction_missing: Array

    def to_frame(self) -> Any:
        """A table in the library of the caller's data: labels, estimate, std_error, df, conf_low, conf_high,
        statistic, p_value, fraction_missing.
        """
        return self.result.model.table(self._columns() | {"fraction_missing": self.fraction_missing})


@checked
@dataclass(frozen=True, repr=False)
class PooledMeans(PooledEstimates):
    """Marginal means, or slopes, over imputations; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    comparison : PooledEstimates or None
        The comparisons that were asked for.
    """

    comparison: PooledEstimates | None
    _imputed: Imputed = field(repr=False)
    _means: tuple[MarginalMeans, ...] = field(repr=False)

    _tests = False

    @property
    def contrasts(self) -> Any:
        """The comparisons as a table in the library of the caller's data; None if none were asked for."""
        return None if self.comparison is None else self.comparison.to_frame()

    def contrast(
        self,
        method: Method = "pairwise",
        adjust: str | None = None,
        level: float | None = None,
        ref: Any = None,
    ) -> PooledEstimates:
        """Compare the means, within each combination of the levels of `by`.

        Parameters
        ----------
        method, adjust, level, ref
            See `MarginalMeans.contrast`.

        Returns
        -------
        PooledEstimates
        """
        level = self.level if level is None else level
        parts = [means.contrast(method, "none", level, ref) for means in self._means]
        name, pairs = adjustment(method, adjust)
        first = self._means[0]
        count = len(first.families())
        size = len(parts[0].estimate) // count
        weights = None
        if pairs and isinstance(method, str):
            members = [tuple(first.labels[variable][i] for variable in first.factors) for i in first.families()[0]]
            weights = np.array(list(contrast_weights(method, members).values()))
        families = [np.arange(size) + i * size for i in range(count)]
        return PooledEstimates(**_put_together(self._imputed, parts, families, name, level, weights))

    def __str__(self) -> str:
        means = super().__str__()
        return means if self.comparison is None else f"{means}\n\n{self.comparison}"

    def _shown(self) -> Iterator[Part]:
        yield from super()._shown()
        if self.comparison is not None:
            yield from self.comparison._shown()


def pooled_means(
    imputed: Imputed,
    factors: str | Sequence[str] | None,
    variable: str | None,
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    contrasts: Method | None = None,
    adjust: str | None = None,
    level: float = 0.95,
    ref: Any = None,
    weights: str = "equal",
) -> PooledMeans:
    """Marginal means of factors, or slopes of a variable, over imputations.

    Parameters
    ----------
    imputed : Imputed
    factors, by, at, contrasts, adjust, level, ref, weights
        As for `means.emmeans`.
    variable : str or None
        Whose slopes are wanted; None for means.

    Returns
    -------
    PooledMeans

    Raises
    ------
    LMMError
        As `means.emmeans` and `means.slopes`, and where a factor has other levels in another imputation.
    """
    parts = []
    for k, result in enumerate(imputed.results):
        ddf, information, robust = imputed.options(k)
        options: dict[str, Any] = {
            "by": by, "at": at, "level": level, "ddf": ddf, "information": information, "robust": robust,
            "weights": weights,
        }  # fmt: skip
        if variable is None:
            assert factors is not None
            parts.append(emmeans(result, factors, **options))
        else:
            parts.append(slopes(result, variable, factors, **options))
        if parts[k].labels != parts[0].labels:
            raise LMMError(
                f"results[{k}] has other levels than results[0]: give the columns of all imputed data sets the same "
                "categories"
            )
    first = parts[0]
    own = "none" if adjust is None or contrasts is not None else method_name(adjust)
    if own == "tukey":
        raise LMMError("adjust='tukey' is for comparisons: give contrasts='pairwise', or use 'sidak'")
    found = _put_together(imputed, parts, first.families(), own, level, None)
    means = PooledMeans(**found, comparison=None, _imputed=imputed, _means=tuple(parts))
    return means if contrasts is None else replace(means, comparison=means.contrast(contrasts, adjust, ref=ref))


def _put_together(
    imputed: Imputed,
    parts: Sequence[Estimates],
    families: Sequence[NDArray[np.intp]],
    adjust: str,
    level: float,
    pairs: Array | None,
) -> dict[str, Any]:
    """Everything that `PooledEstimates` holds."""
    m, first = len(parts), parts[0]
    estimates = np.array([part.estimate for part in parts])
    found = rubin(estimates, np.array([p.std_error for p in parts]) ** 2, np.array([p.df for p in parts]))
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = found.estimate / found.std_error

    def covariance(rows: NDArray[np.intp]) -> Array:
        within = [p.L[rows] @ np.nan_to_num(imputed.covariance(k)) @ p.L[rows].T for k, p in enumerate(parts)]
        between = np.atleast_2d(np.cov(estimates[:, rows], rowvar=False))
        return np.asarray(np.mean(within, axis=0) + (1.0 + 1.0 / m) * between)

    done = adjusted(
        statistic, found.std_error, found.df, families, adjust, level, pairs, (first.L.__getitem__, covariance)
    )
    return {
        "labels": first.labels,
        "estimate": found.estimate,
        "std_error": found.std_error,
        "df": found.df,
        "conf_low": found.estimate - done.half,
        "conf_high": found.estimate + done.half,
        "statistic": statistic,
        "pvalues": done.pvalues,
        "L": first.L,
        "level": level,
        "adjust": adjust,
        # of the fits what their means stand for; how they are tested is said once, for all of them
        "notes": (
            *done.notes,
            *(n for n in first.notes if not n.startswith("Robust covariance")),
            f"{imputed.method}.",
        ),
        "result": imputed.results[0],
        "scale": None,
        "fraction_missing": found.fraction_missing,
    }

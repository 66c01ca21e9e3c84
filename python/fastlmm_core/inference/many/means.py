"""Marginal means, slopes and comparisons of many responses: linear functions that one design has for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...estimation.fit import Fit, estimate
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.distributions import two_sided_p
from ...support.types import Array
from ..hypotheses import Hypothesis
from ..means.means import Estimates, emmeans, slopes
from ..wald import undetermined
from .t_tests import TTests
from .tests import tests

if TYPE_CHECKING:
    from ...estimation.many.batch_fit import BatchFit

__all__ = ["BatchMeans", "marginal_means", "mean_slopes"]


@checked
@dataclass(frozen=True, repr=False)
class BatchMeans(TTests, Shown):
    """Marginal means, slopes or comparisons of every response.

    Attributes
    ----------
    labels : dict
        What each of the k estimates stands for: columns of labels.
    estimate, std_error, df, statistic, pvalues : (n_responses, k) arrays
        statistic is t (z for infinite df) of the hypothesis that the estimate is zero.  NaN for responses that could
        not be fitted, and for what the design does not determine.
    L : (k, p) array
        The linear functions of the coefficients.
    comparison : BatchMeans or None
        The comparisons that were asked for.
    """

    labels: dict[str, list[Any]]
    estimate: Array
    std_error: Array
    df: Array
    statistic: Array
    pvalues: Array
    L: Array
    comparison: BatchMeans | None
    _batch: BatchFit = field(repr=False)

    def to_frame(self, level: float = 0.95) -> Any:
        """One row per response and estimate.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            response (its label or position), the labels, estimate, std_error, df, conf_low, conf_high, statistic,
            p_value.
        """
        n, k = self.estimate.shape
        responses = np.arange(n) if self._batch.labels is None else self._batch.labels
        columns: dict[str, Any] = {"response": np.repeat(responses, k)}
        columns |= {name: list(values) * n for name, values in self.labels.items()}
        limits = self.conf_int(level)
        numbers = {
            "estimate": self.estimate, "std_error": self.std_error, "df": self.df, "conf_low": limits[..., 0],
            "conf_high": limits[..., 1], "statistic": self.statistic, "p_value": self.pvalues,
        }  # fmt: skip
        return self._batch.model.table(columns | {name: np.array(v).ravel() for name, v in numbers.items()})

    def _shown(self) -> Iterator[str | Cells]:
        n, k = self.estimate.shape
        yield f"{k} estimates of {n} responses"
        average = np.nanmean(self.estimate, axis=0) if n else np.full(k, np.nan)
        below = (self.pvalues < 0.05).sum(axis=0)
        names = [[str(value) for value in values] for values in self.labels.values()]
        rows = [list(row) for row in zip(*names, [f"{v:.4g}" for v in average], map(str, below), strict=True)]
        yield Cells([*self.labels, "mean", "p < 0.05"], rows, left=len(self.labels))

    def __repr__(self) -> str:
        n, k = self.estimate.shape
        return f"<BatchMeans: {k} estimates of {n} responses, by {', '.join(self.labels)}>"


def marginal_means(batch: BatchFit, options: dict[str, Any], ddf: str, information: str) -> BatchMeans:
    """See `BatchResult.emmeans`; `options` are those of `means.emmeans`."""
    return _of_design(batch, emmeans(_one(batch), **options), ddf, information)


def mean_slopes(batch: BatchFit, options: dict[str, Any], ddf: str, information: str) -> BatchMeans:
    """See `BatchResult.slopes`; `options` are those of `means.slopes`."""
    return _of_design(batch, slopes(_one(batch), **options), ddf, information)


def _one(batch: BatchFit) -> Fit:
    """A fit of the design, of which the linear functions are taken and nothing else."""
    model = batch.model.fittable()
    found: Fit = model.once("fit for the design", lambda: estimate(batch.kind, model, True))
    return found


def _of_design(batch: BatchFit, found: Any, ddf: str, information: str) -> BatchMeans:
    compared: Estimates | None = found.comparison
    comparison = None if compared is None else _rows(batch, compared, np.zeros(len(compared.L)), None, ddf, information)
    # the mean of an offset is part of means, and not of slopes
    return _rows(batch, found, _offsets(batch, found), comparison, ddf, information)


def _offsets(batch: BatchFit, found: Estimates) -> Array:
    offset = batch.model.offset
    if offset is None:
        return np.zeros(len(found.L))
    return np.asarray(np.nan_to_num(found.estimate - found.L @ np.nan_to_num(found.result.beta)))


def _rows(
    batch: BatchFit, found: Estimates, shift: Array, comparison: BatchMeans | None, ddf: str, information: str
) -> BatchMeans:
    n, k = len(batch), len(found.L)
    estimate, error, df = (np.full((n, k), np.nan) for _ in range(3))
    there = np.flatnonzero(~undetermined(batch.model, found.L).any(axis=1) & found.L.any(axis=1))
    asked = [Hypothesis(found.L[[j]], np.zeros(1), (f"estimate {j}",)) for j in there.tolist()]
    for j, test in zip(there.tolist(), tests(batch, asked, ddf, information), strict=True):
        estimate[:, j], error[:, j], df[:, j] = test.estimate[:, 0] + shift[j], test.std_error[:, 0], test.df_denom
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = estimate / error
    return BatchMeans(
        found.labels, estimate, error, df, statistic, two_sided_p(statistic, df), found.L, comparison, batch
    )

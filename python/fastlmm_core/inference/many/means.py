"""Marginal means, slopes and comparisons of many responses: linear functions that one design has for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...estimation.column_moments import offset_mean
from ...estimation.estimate import estimate
from ...estimation.fit import Fit
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.distributions import two_sided_p
from ...support.types import Array
from ...tables.columns import native_frame
from ...tables.rows import FitLabels
from ..hypotheses import Hypothesis
from ..means.means import Estimates, emmeans, slopes
from ..wald import undetermined
from .t_tests import TTests
from .tests import BatchTest, tests

if TYPE_CHECKING:
    from ...estimation.many.batch_fit import BatchFit
    from ...estimation.model import Model

__all__ = ["BatchMeans", "Functions"]


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
    _labels: FitLabels = field(repr=False)

    def to_frame(self, level: float = 0.95) -> Any:
        """One row per response and estimate.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            response (its label or position), the labels, estimate, std_error, df, conf_low, conf_high, statistic,
            p_value.
        """
        n, k = self.estimate.shape
        columns: dict[str, Any] = {self._labels.name: np.repeat(self._labels.known(n), k)}
        columns |= {name: list(values) * n for name, values in self.labels.items()}
        limits = self.conf_int(level)
        numbers = {
            "estimate": self.estimate, "std_error": self.std_error, "df": self.df, "conf_low": limits[..., 0],
            "conf_high": limits[..., 1], "statistic": self.statistic, "p_value": self.pvalues,
        }  # fmt: skip
        return native_frame(self._labels.library, columns | {name: np.array(v).ravel() for name, v in numbers.items()})

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


class Functions(NamedTuple):
    """Fits of which linear functions are estimated.

    Attributes
    ----------
    model : Model
        Whose functions they are.
    kind : type
        Of the record of a fit.
    labels : FitLabels
    offsets : (n,) array
        Mean of the offset of each fit, which is part of means.
    tested : callable
        From hypotheses to the tests of each for all fits.
    """

    model: Model
    kind: type[Fit]
    labels: FitLabels
    offsets: Array
    tested: Callable[[Sequence[Hypothesis]], Sequence[BatchTest]]

    @classmethod
    def of(cls, batch: BatchFit, ddf: str, information: str) -> Functions:
        """Of responses on one design."""
        model, mean = batch.model, offset_mean(batch.model)
        return cls(
            model, batch.kind, FitLabels(model.library, batch.labels), np.full(len(batch), mean or 0.0),
            lambda asked: tests(batch, asked, ddf, information),
        )  # fmt: skip

    def means(self, **options: Any) -> BatchMeans:
        """See `BatchResult.emmeans`; the options are those of `means.emmeans`."""
        return self._of_design(emmeans(self._one(), **options, adjust=_alone(options)), self.offsets)

    def slopes(self, **options: Any) -> BatchMeans:
        """See `BatchResult.slopes`; the options are those of `means.slopes`."""
        return self._of_design(slopes(self._one(), **options, adjust=_alone(options)), np.zeros(len(self.offsets)))

    def _one(self) -> Fit:
        """A fit of the design, of which the linear functions are taken and nothing else."""
        model = self.model.fittable()
        found: Fit = model.once("fit for the design", lambda: estimate(self.kind, model, True))
        return found

    def _of_design(self, found: Any, shift: Array) -> BatchMeans:
        compared: Estimates | None = found.comparison
        comparison = None if compared is None else self._rows(compared, np.zeros(len(shift)), None)
        return self._rows(found, shift, comparison)

    def _rows(self, found: Estimates, shift: Array, comparison: BatchMeans | None) -> BatchMeans:
        n, k = len(shift), len(found.L)
        estimate, error, df = (np.full((n, k), np.nan) for _ in range(3))
        there = np.flatnonzero(~undetermined(self.model, found.L).any(axis=1) & found.L.any(axis=1))
        asked = [Hypothesis(found.L[[j]], np.zeros(1), (f"estimate {j}",)) for j in there.tolist()]
        for j, test in zip(there.tolist(), self.tested(asked), strict=True):
            estimate[:, j], error[:, j], df[:, j] = test.estimate[:, 0] + shift, test.std_error[:, 0], test.df_denom
        with np.errstate(invalid="ignore", divide="ignore"):
            statistic = estimate / error
        return BatchMeans(
            found.labels, estimate, error, df, statistic, two_sided_p(statistic, df), found.L, comparison, self.labels
        )


def _alone(options: dict[str, Any]) -> str | None:
    """The adjustment of contrasts, each of which is looked at by itself."""
    return None if options["contrasts"] is None else "none"

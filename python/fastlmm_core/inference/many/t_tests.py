"""What several t tests of each response of a batch have in common."""

from __future__ import annotations

import numpy as np

from ...support.arguments import checked
from ...support.checks import check_level
from ...support.distributions import quantile
from ...support.log_tails import log10_f_tail
from ...support.types import Array
from ..false_discoveries import false_discovery_rates

__all__ = ["TTests"]


@checked
class TTests:
    """Estimates with t tests, k for each response; the base of results that say what they are of.

    Attributes
    ----------
    estimate, std_error, df, statistic, pvalues : (n_responses, k) arrays
    """

    estimate: Array
    std_error: Array
    df: Array
    statistic: Array
    pvalues: Array

    def __len__(self) -> int:
        return len(self.estimate)

    @property
    def log10p(self) -> Array:
        """log10 of the p-values (n_responses, k), however small they are."""
        return log10_f_tail(self.statistic**2, 1.0, self.df)

    def fdr(self, method: str = "bh") -> Array:
        """p-values adjusted for the number of responses, one estimate at a time (n_responses, k).

        Parameters
        ----------
        method : {"bh", "by"}
            Benjamini and Hochberg (1995), or Benjamini and Yekutieli (2001) for any dependence.
        """
        return false_discovery_rates(self.pvalues, method)

    def conf_int(self, level: float = 0.95) -> Array:
        """Confidence intervals (n_responses, k, 2)."""
        check_level(level)
        half = quantile(0.5 + 0.5 * level, self.df) * self.std_error
        return np.stack([self.estimate - half, self.estimate + half], axis=-1)

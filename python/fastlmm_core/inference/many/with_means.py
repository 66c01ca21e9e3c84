"""Marginal means and slopes of many fits, whatever these share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...support.arguments import checked

if TYPE_CHECKING:
    from ..options import Ddf, Information
    from .means import BatchMeans, Functions

__all__ = ["WithMeans"]


@checked
class WithMeans:
    """Fits that say of which functions they are (`_functions`)."""

    def _functions(self, ddf: str, information: str) -> Functions:
        raise NotImplementedError

    def emmeans(
        self,
        factors: str | Sequence[str],
        *,
        by: str | Sequence[str] | None = None,
        at: Any = None,
        contrasts: Any = None,
        ref: Any = None,
        weights: str = "equal",
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
    ) -> BatchMeans:
        """Estimated marginal means of every fit, and contrasts of them.

        They are the same linear functions for all fits: covariates stand at their means over all rows, and levels are
        weighted by all rows.  A covariate of each response's own stands at its mean over the observations of that
        response, and has zeros in `L`.

        Parameters
        ----------
        factors, by, at, contrasts, ref, weights
            As for `LMMResult.emmeans`.  Tests and limits are those of each estimate by itself: `BatchMeans.fdr` adjusts
            them for the number of fits.
        ddf, information
            As for `test`.

        Returns
        -------
        BatchMeans
            With ``comparison`` where contrasts were asked for; NaN for fits whose rows do not determine a mean.

        Raises
        ------
        LMMError
            As `LMMResult.emmeans`, and as `test`.
        """
        functions = self._functions(ddf, information)
        return functions.means(factors=factors, by=by, at=at, contrasts=contrasts, ref=ref, weights=weights)

    def slopes(
        self,
        variable: str,
        factors: str | Sequence[str] | None = None,
        *,
        by: str | Sequence[str] | None = None,
        at: Any = None,
        contrasts: Any = None,
        ref: Any = None,
        weights: str = "equal",
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
    ) -> BatchMeans:
        """Slopes along a covariate of every fit, and contrasts of them.

        Parameters
        ----------
        variable, factors, by, at, contrasts, ref, weights
            As for `LMMResult.slopes`; tests, limits and what is the same for all fits as for `emmeans`.
        ddf, information
            As for `test`.

        Returns
        -------
        BatchMeans

        Raises
        ------
        LMMError
            As `LMMResult.slopes`, and as `test`.
        """
        functions = self._functions(ddf, information)
        return functions.slopes(
            variable=variable, factors=factors, by=by, at=at, contrasts=contrasts, ref=ref, weights=weights
        )

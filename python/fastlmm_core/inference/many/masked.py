"""Fits of responses with missing observations, and their tests: each as a fit of the observations that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.arguments import checked
from ...support.distributions import two_sided_p
from ...support.types import Array
from ...tables.rows import named_rows
from ..hypotheses import parse_hypothesis
from ..wald import check_estimable, independent_rows
from .each import EachResult
from .tests import BatchTest, test, tidy_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit
    from ...estimation.many.masks import Masked
    from ...estimation.model import Model
    from ..options import Ddf, Information

__all__ = ["MaskedBatch"]


@checked
class MaskedBatch:
    """Estimates for many responses of which each has its own observations; arrays have a leading axis over responses.

    Attributes
    ----------
    model : LinearMixedModel
        With all rows.
    masks : tuple of Masked
        Responses that miss the same observations: rows, members, their batch (None where these rows do not determine a
        fit) and the reason why not.
    scattered : (int array, EachResult) or None
        Where many masks have few responses: positions of these, and their fits.
    nobs, n_groups : (n_responses,) int arrays
        Observations that are there, and levels of the (finest) grouping factor among them.
    params, bse, df : (n_responses, p) arrays
        Fixed effects, standard errors and Satterthwaite's degrees of freedom; NaN for columns that the observations do
        not determine, and for responses that could not be fitted.
    sigma2, criterion, aic, bic : (n_responses,) arrays
    covariance : (n_responses, q, q) array
        Of the random effects of all terms.
    converged, singular : (n_responses,) bool arrays
    labels : (n_responses,) array or None
    """

    def __init__(
        self,
        model: Model,
        masks: Sequence[Masked[Any]],
        labels: NDArray[Any] | None,
        scattered: tuple[NDArray[np.intp], EachResult] | None = None,
    ) -> None:
        self.model = model
        self.masks = tuple(masks)
        self.labels = labels
        self.scattered = scattered
        count = sum(len(mask.members) for mask in masks) + (0 if scattered is None else len(scattered[0]))
        self._owner = np.empty(count, dtype=np.intp)
        self._place = np.empty(count, dtype=np.intp)
        self.nobs = np.zeros(count, dtype=np.intp)
        self.n_groups = np.zeros(count, dtype=np.intp)
        index = model.factors[0].grouping.index if model.factors else None
        for k, mask in enumerate(masks):
            self._owner[mask.members], self._place[mask.members] = k, np.arange(len(mask.members))
            self.nobs[mask.members] = len(mask.rows)
            self.n_groups[mask.members] = 0 if index is None else len(np.unique(index[mask.rows]))
        if scattered is not None:
            places, fits = scattered
            self._owner[places], self._place[places] = -1, np.arange(len(places))
            self.nobs[places], self.n_groups[places] = fits.nobs, fits.n_groups
        p, q = model.exog.shape[1], model.structure.q
        self.params, self.bse = self._spread("params", (p,)), self._spread("bse", (p,))
        self.df = self._spread("satterthwaite", (p,))
        self.sigma2, self.criterion = self._spread("sigma2"), self._spread("criterion")
        self.aic, self.bic = self._spread("aic"), self._spread("bic")
        self.covariance = self._spread("covariance", (q, q))
        self.converged = self._spread("converged") == 1.0
        self.singular = self._spread("singular") == 1.0

    def _fitted(self) -> list[tuple[NDArray[np.intp], BatchFit]]:
        return [(mask.members, mask.batch) for mask in self.masks if mask.batch is not None]

    def _parts(self) -> list[tuple[NDArray[np.intp], BatchFit | EachResult]]:
        return [*self._fitted(), *([] if self.scattered is None else [self.scattered])]

    def _spread(self, name: str, shape: tuple[int, ...] = ()) -> Array:
        """An array of all responses from those of the masks."""
        out = np.full((len(self), *shape), np.nan)
        for members, batch in self._parts():
            out[members] = getattr(batch, name)
        return out

    def __len__(self) -> int:
        return len(self._owner)

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Responses that could not be fitted."""
        return np.flatnonzero(np.isnan(self.criterion))

    @property
    def tvalues(self) -> Array:
        """Estimates divided by standard errors (n_responses, p)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.params / self.bse)

    @property
    def pvalues(self) -> Array:
        """Two-sided p-values of the t tests that each fixed effect is zero (n_responses, p), by Satterthwaite's df."""
        return two_sided_p(self.tvalues, self.df)

    def __getitem__(self, i: int) -> Fit:
        """The full result of one response, by position, on the observations that it has.

        Raises
        ------
        IndexError
            For a position outside the batch.
        LMMError
            For a response that could not be fitted: the reason.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"response {i} of {len(self)}")
        if self.scattered is not None and self._owner[i] < 0:
            return self.scattered[1].one(int(self._place[i]))
        mask = self.masks[int(self._owner[i])]
        if mask.batch is None:
            raise LMMError(f"response {i} could not be fitted: {mask.reason}")
        found: Fit = mask.batch.one(int(self._place[i]))
        return found

    def test(
        self,
        hypothesis: Any,
        rhs: Any = None,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
    ) -> BatchTest:
        """Test linear hypotheses on the fixed effects for every response, each on its own design.

        Parameters
        ----------
        hypothesis, rhs
            See `LMMResult.test`.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `LMMResult.test`.

        Returns
        -------
        BatchTest
            NaN for responses whose observations do not determine the hypothesis.

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested where nothing is missing, or as `BatchResult.test`.
        """
        whole = self.model.fittable()
        parsed = parse_hypothesis(hypothesis, self.model.exog_names, rhs)
        check_estimable(whole, parsed.L, parsed.names)
        rank = len(independent_rows(parsed.L @ whole.problem.x_map, parsed.rhs, parsed.names)[0])
        n, m = len(self), len(parsed.L)
        estimate, error = np.full((n, m), np.nan), np.full((n, m), np.nan)
        statistic, freedom, pvalues = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
        for members, batch in self._parts():
            if isinstance(batch, EachResult):
                found = batch.test(parsed.L, parsed.rhs, ddf=ddf, information=information)
            else:
                try:
                    check_estimable(batch.model, parsed.L, parsed.names)
                except LMMError:
                    continue
                found = test(batch, parsed.L, parsed.rhs, ddf, information)
            estimate[members], error[members] = found.estimate, found.std_error
            statistic[members], freedom[members], pvalues[members] = found.statistic, found.df_denom, found.pvalues
        return BatchTest(
            estimate, error, statistic, rank, freedom, pvalues, parsed.L, parsed.rhs, parsed.names, ddf, "model",
            self.model.library, self.labels,
        )  # fmt: skip

    def tidy(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Any:
        """One row per response and coefficient, as `BatchResult.tidy` has them.

        Parameters
        ----------
        level : float
        ddf, information
            As for `test`.

        Raises
        ------
        LMMError
            As `BatchResult.tidy`.
        """
        p = len(self.model.exog_names)
        labels = np.arange(len(self)) if self.labels is None else self.labels
        columns: dict[str, Any] = {
            "response": np.repeat(labels, p), "term": list(self.model.exog_names) * len(self),
        }  # fmt: skip
        for name in ("estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high"):
            columns[name] = np.full((len(self), p), np.nan)
        for members, batch in self._parts():
            if isinstance(batch, EachResult):
                found = batch.columns(level, ddf, information)
            else:
                found = tidy_columns(batch, level, ddf, information)
            for name in list(columns)[2:]:
                columns[name][members] = found[name].reshape(-1, p)
        return self.model.table({name: v.ravel() if isinstance(v, np.ndarray) else v for name, v in columns.items()})

    def to_frame(self) -> Any:
        """One row per response: nobs, n_groups, estimates, standard errors, sigma2, criterion and flags."""
        names = self.model.exog_names
        columns: dict[str, Any] = {"nobs": self.nobs, "n_groups": self.n_groups}
        columns |= {name: self.params[:, j] for j, name in enumerate(names)}
        columns |= {f"std_error_{name}": self.bse[:, j] for j, name in enumerate(names)}
        columns |= {
            "sigma2": self.sigma2, "criterion": self.criterion, "converged": self.converged, "singular": self.singular,
        }  # fmt: skip
        return named_rows(self.model.library, "response", self.labels, columns)

    @property
    def _sets(self) -> int:
        return len(self.masks) + (0 if self.scattered is None else len(self.scattered[0]))

    def __repr__(self) -> str:
        return (
            f"<MaskedBatch: {len(self)} fits on {self._sets} sets of observations, {int(self.converged.sum())} "
            f"certified, {int(self.singular.sum())} singular, {len(self.invalid)} not fitted>"
        )

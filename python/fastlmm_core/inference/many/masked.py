"""Fits of responses with missing observations, and their tests: each as a fit of the observations that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.arguments import checked
from ...support.types import Array
from ..anova import hypotheses
from ..hypotheses import Hypothesis
from ..wald import check_estimable, independent_rows
from .each import EachResult
from .own_designs import OwnDesigns
from .several import BatchTests, term_hypotheses
from .tests import BatchTest, coefficients, covariances, tests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...design.design import Design
    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit
    from ...estimation.many.masks import Masked
    from ...estimation.model import Model
    from ..options import Ddf, Information

__all__ = ["MaskedBatch"]


class _Whole(NamedTuple):
    """A design with all rows, in the place of a result."""

    model: Model


@checked
class MaskedBatch(OwnDesigns):
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

    _one = "response"

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

    @property
    def _shared(self) -> Design:
        return self.model.design

    @property
    def _outcome(self) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
        return self.covariance, self.converged, self.singular

    @property
    def _names(self) -> NDArray[Any] | None:
        return self.labels

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

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Responses that could not be fitted."""
        return np.flatnonzero(np.isnan(self.criterion))

    def cov_params(self) -> Array:
        """Covariance matrices of the fixed effects (n_responses, p, p); NaN as in `bse`."""
        p = self.params.shape[1]
        out = np.full((len(self), p, p), np.nan)
        for members, batch in self._parts():
            out[members] = batch.cov_params() if isinstance(batch, EachResult) else covariances(batch)
        return out

    def anova(self, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> BatchTests:
        """F tests of the terms of the fixed part (type III) of every response, on the observations that it has.

        Hypotheses of types I and II depend on the observations: single fits have them, ``batch[i].anova("II")``.

        Parameters
        ----------
        ddf, information
            As for `test`.

        Returns
        -------
        BatchTests
            By term; without the terms of which nothing can be estimated, which `notes` name.

        Raises
        ------
        LMMError
            As `test`.
        """
        # the hypotheses are those of the design
        found, notes = hypotheses(cast("Fit", _Whole(self.model.fittable())), "III")
        parsed = term_hypotheses(found)
        done = self.tested(list(parsed.values()), ddf, information)
        return BatchTests(dict(zip(parsed, done, strict=True)), self._labels, self.model.library, notes)

    def __getitem__(self, i: int) -> Fit:
        """The full result of one response, by position, on the observations that it has.

        Raises
        ------
        IndexError
            For a position outside the batch.
        LMMError
            For a response that could not be fitted: the reason; for anything but a position.
        """
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            raise LMMError(f"batch[{i!r}]: give the position of one response; arrays (params, bse) take slices")
        if not -len(self) <= i < len(self):
            raise IndexError(f"response {i} of {len(self)}")
        if self.scattered is not None and self._owner[i] < 0:
            return self.scattered[1].one(int(self._place[i]))
        mask = self.masks[int(self._owner[i])]
        if mask.batch is None:
            raise LMMError(f"response {i} could not be fitted: {mask.reason}")
        found: Fit = mask.batch.one(int(self._place[i]))
        return found

    def _coefficients(self, ddf: str, information: str) -> tuple[Array, Array]:
        error, freedom = np.full_like(self.bse, np.nan), np.full_like(self.bse, np.nan)
        for members, batch in self._parts():
            if isinstance(batch, EachResult):
                error[members], freedom[members] = batch._coefficients(ddf, information)
            else:
                error[members], freedom[members] = coefficients(batch, ddf, information)
        return error, freedom

    def tested(self, asked: Sequence[Hypothesis], ddf: str, information: str) -> list[BatchTest]:
        """Tests of several hypotheses of every response; see `tests`.

        Parameters
        ----------
        asked : sequence of Hypothesis
        ddf, information
            As for `tests`.

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested where nothing is missing, or as `BatchResult.test`.
        """
        whole = self.model.fittable()
        out = []
        for parsed in asked:
            check_estimable(whole, parsed.L, parsed.names)
            rank = len(independent_rows(parsed.L @ whole.problem.x_map, parsed.rhs, parsed.names)[0])
            out.append(self._untested(parsed, rank, ddf))
        for members, batch in self._parts():
            if isinstance(batch, EachResult):
                some = list(range(len(asked)))
                found = batch.tested(asked, ddf, information)
            else:
                some = [k for k, one in enumerate(asked) if _estimable(batch, one)]
                found = tests(batch, [asked[k] for k in some], ddf, information)
            for k, one in zip(some, found, strict=True):
                own = out[k]
                own.estimate[members], own.std_error[members] = one.estimate, one.std_error
                own.statistic[members], own.df_denom[members] = one.statistic, one.df_denom
                own.pvalues[members] = one.pvalues
        return out

    def _untested(self, parsed: Hypothesis, rank: int, ddf: str) -> BatchTest:
        """A test of which nothing is known yet."""
        n, m = len(self), len(parsed.L)
        pairs, numbers = [np.full((n, m), np.nan) for _ in range(2)], [np.full(n, np.nan) for _ in range(3)]
        return BatchTest(
            pairs[0], pairs[1], numbers[0], rank, numbers[1], numbers[2], parsed.L, parsed.rhs, parsed.names, ddf,
            "model", self.model.library, self.labels,
        )  # fmt: skip

    @property
    def _sets(self) -> int:
        return len(self.masks) + (0 if self.scattered is None else len(self.scattered[0]))

    def __repr__(self) -> str:
        return (
            f"<MaskedBatch: {len(self)} fits on {self._sets} sets of observations, {int(self.converged.sum())} "
            f"certified, {int(self.singular.sum())} singular, {len(self.invalid)} not fitted>"
        )


def _estimable(batch: BatchFit, parsed: Hypothesis) -> bool:
    """Whether the observations of a mask determine a hypothesis."""
    try:
        check_estimable(batch.model, parsed.L, parsed.names)
    except LMMError:
        return False
    return True

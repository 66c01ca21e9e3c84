"""Fits of responses with missing observations, and their tests: each as a fit of the observations that it has."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...estimation.column_moments import offset_mean
from ...estimation.many.mask_parts import fits_of, joined_masks, masks_with_responses, some_masks
from ...estimation.many.masks import Masked, responses_of
from ...estimation.many.parts import check_labels, chosen_places, same_design
from ...estimation.many.values import ResponseStack, for_lanes
from ...support.arguments import checked
from ...support.seeds import Seed, generator_of
from ...support.types import Array
from ..hypotheses import Hypothesis
from ..likelihood_ratio.compare import Null
from ..likelihood_ratio.many import BatchComparison, random_effect_test
from ..likelihood_ratio.own_designs import FitsToCompare
from ..wald import check_estimable, independent_rows
from .each import EachResult, statistic_of
from .own_designs import OwnDesigns
from .own_permutation import Source
from .tests import BatchTest, coefficients, covariances, tests
from .variances import BatchVariances, Estimated, Shared, components

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...design.design import Design
    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit
    from ...estimation.model import Model

__all__ = ["MaskedBatch"]


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
    nobs, n_groups, rank : (n_responses,) int arrays
        Observations that are there, levels of the (finest) grouping factor among them, and columns of X that they
        determine (0 where a response could not be fitted).
    params, bse, df : (n_responses, p) arrays
        Fixed effects, standard errors and Satterthwaite's degrees of freedom; NaN for columns that the observations do
        not determine, and for responses that could not be fitted.
    sigma2, criterion, aic, bic : (n_responses,) arrays
    covariance : (n_responses, q, q) array
        Of the random effects of all terms.
    theta : (n_responses, k) array
        Relative covariance parameters, in lme4's order.
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
        self._owner, self._place = fits_of(masks, scattered)
        count = len(self._owner)
        self.nobs = np.zeros(count, dtype=np.intp)
        self.n_groups = np.zeros(count, dtype=np.intp)
        index = model.factors[0].grouping.index if model.factors else None
        for mask in masks:
            self.nobs[mask.members] = len(mask.rows)
            self.n_groups[mask.members] = 0 if index is None else len(np.unique(index[mask.rows]))
        if scattered is not None:
            places, fits = scattered
            self.nobs[places], self.n_groups[places] = fits.nobs, fits.n_groups
        p = model.exog.shape[1]
        self.params, self.bse = self._spread("params", (p,)), self._spread("bse", (p,))
        self.df = self._spread("satterthwaite", (p,))
        self.sigma2, self.criterion = self._spread("sigma2"), self._spread("criterion")
        self.rank = np.nan_to_num(self._spread_of(_rank)).astype(np.intp)
        self.converged = self._spread("converged") == 1.0
        self.singular = self._spread("singular") == 1.0

    @cached_property
    def aic(self) -> Array:
        """Akaike's information criterion (n_responses,)."""
        return self._spread("aic")

    @cached_property
    def bic(self) -> Array:
        """Schwarz's information criterion (n_responses,)."""
        return self._spread("bic")

    @cached_property
    def covariance(self) -> Array:
        """Covariance matrices of the random effects of all terms (n_responses, q, q)."""
        return self._spread("covariance", (self.model.structure.q,) * 2)

    @cached_property
    def theta(self) -> Array:
        """Relative covariance parameters in natural units (n_responses, k)."""
        phi = 0 if self.model.design.residual is None else self.model.design.residual.n_parameters
        return self._spread("theta", (self.model.structure.n_parameters + phi,))

    @property
    def _one(self) -> str:
        return "response"

    @property
    def _record(self) -> type[Fit]:
        parts = self._parts()
        if not parts:
            raise LMMError("none of the responses could be fitted")
        return parts[0][1].kind

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
        return self._spread_of(lambda batch: getattr(batch, name), shape)

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Responses that could not be fitted."""
        return np.flatnonzero(np.isnan(self.criterion))

    def cov_params(self) -> Array:
        """Covariance matrices of the fixed effects (n_responses, p, p); NaN as in `bse`."""
        p = self.params.shape[1]
        return self._spread_of(lambda b: b.cov_params() if isinstance(b, EachResult) else covariances(b), (p, p))

    def _whole(self) -> Model:
        return self.model

    def _spread_of(self, part: Callable[[BatchFit | EachResult], Array], shape: tuple[int, ...] = ()) -> Array:
        """An array of all responses from what is found for those of each mask."""
        out = np.full((len(self), *shape), np.nan)
        for members, batch in self._parts():
            out[members] = part(batch)
        return out

    def _offsets(self) -> Array:
        return np.nan_to_num(self._spread_of(lambda b: b._offsets() if isinstance(b, EachResult) else _offset(b)))

    def _shares(self) -> Shared:
        p, q = self.params.shape[1], self.model.structure.q

        def share(name: str, *shape: int) -> Array:
            return self._spread_of(
                lambda b: getattr(b._shares() if isinstance(b, EachResult) else Shared.of(b), name), shape
            )

        return Shared(
            self.model.design, self.params, self.covariance, self.sigma2, share("of_z", q, q), share("of_x", p, p),
            share("residual"),
        )  # fmt: skip

    def _components(self) -> BatchVariances:
        phi = self.theta[:, self.model.structure.n_parameters :]
        out = Estimated(self.model.design, self.covariance, self.sigma2).table(self._called, phi)
        for members, batch in self._parts():
            found = batch.variance_components() if isinstance(batch, EachResult) else components(batch)
            out.std_error[members] = found.std_error
        return out

    def _of_response(self, i: int) -> tuple[BatchFit | EachResult, int]:
        """The fits among which that of a response is, and its place there."""
        if self._owner[i] >= 0:
            mask = self.masks[int(self._owner[i])]
            if mask.batch is None:
                raise LMMError(f"response {i} could not be fitted: {mask.reason}")
            return mask.batch, int(self._place[i])
        assert self.scattered is not None
        return self.scattered[1], int(self._place[i])

    def one(self, i: int) -> Fit:
        """The full record of one response, on the observations that it has.

        Parameters
        ----------
        i : int
            Position.

        Raises
        ------
        LMMError
            For a response that could not be fitted: the reason.
        """
        batch, place = self._of_response(i)
        return batch.one(place)

    def _to_compare(self) -> FitsToCompare:
        parts = self._parts()

        def model(i: int) -> Model:
            batch, place = self._of_response(i)
            return batch.stack.model(place) if isinstance(batch, EachResult) else batch.model

        def factor(i: int) -> Array:
            batch, place = self._of_response(i)
            return np.asarray(batch.relative_factor[place])

        return FitsToCompare(
            self._called, parts[0][1].reml if parts else True, self.criterion, self.converged,
            self.rank, self.nobs, (self.model.exog,), model, factor,
        )  # fmt: skip

    def _effect_tests(self, term: str | None, null: Null, n_sim: int | None, seed: Seed) -> dict[str, BatchComparison]:
        known = int(seed if isinstance(seed, int | np.integer) else generator_of(seed).integers(2**62))
        out: dict[str, BatchComparison] = {}
        for members, batch in self._parts():
            if isinstance(batch, EachResult):
                found = batch.random_effect_test(term, null=null, n_sim=n_sim, seed=known)
            else:
                found = random_effect_test(batch, term, null, n_sim, known)
            for name, own in found.items():
                if name not in out:
                    lines = [np.full(len(self), np.nan) for _ in range(3)]
                    out[name] = BatchComparison(
                        name, lines[0], own.df, lines[1], lines[2], own.null, self._called
                    )  # fmt: skip
                whole = out[name]
                whole.statistic[members], whole.pvalues[members] = own.statistic, own.pvalues
                whole.p_std_error[members] = own.p_std_error
        return out

    def _source(self) -> Source:
        if not for_lanes(self.model):
            raise LMMError(
                "permute() of responses with missing observations takes one grouping factor; permute complete "
                "responses, or use test(ddf='kenward-roger')"
            )
        Y = np.full((len(self), self.model.nobs), np.nan)
        fitted = np.isfinite(self.criterion)
        for mask in self.masks:
            if mask.batch is None:
                continue
            if mask.batch.responses is None:
                raise LMMError(f"{mask.batch.gone}: fit an array to permute it")
            Y[np.ix_(mask.members, mask.rows)] = mask.batch.fitted_responses(np.arange(len(mask.members)))
        kind: Any = None
        reml = True
        for members, batch in self._parts():
            kind, reml = batch.kind, batch.reml
            if isinstance(batch, EachResult):
                Y[members] = batch.stack.Y  # type: ignore[attr-defined]
        stack = ResponseStack(self.model, Y, self._labels, None, None, {})
        return Source(
            stack, self.params, fitted, reml, lambda other: EachResult(other, kind, reml), statistic_of
        )  # fmt: skip

    def __getitem__(self, i: Any) -> Any:
        """The full result of one response, by position or label, on the observations that it has, or some of the fits.

        Parameters
        ----------
        i : int, label, slice, mask or list
            As for `BatchResult`.

        Raises
        ------
        IndexError
            For a position outside the batch.
        LMMError
            For a response that could not be fitted: the reason; for an unknown label.
        """
        if isinstance(i, (slice, list, np.ndarray)) and not (isinstance(i, np.ndarray) and i.ndim == 0):
            return self._part(self._places(i))
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            i = self._place_of(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"response {i} of {len(self)}")
        return self.one(int(i) % len(self))

    def random_effects(self, which: Any = None) -> Any:
        """BLUPs of the random effects, computed on request from the observations that each response has.

        Parameters
        ----------
        which : indices, labels or slice, optional
            Responses wanted; by default all.

        Returns
        -------
        (n_wanted, n_groups, q) array
            By the groups of the whole design; NaN for groups of which a response has no observation, and where it could
            not be fitted.  A dict by factor where there are several.

        Raises
        ------
        LMMError
            Where a pickle has left the responses out, or for an unknown label.
        """
        chosen = self._places([which] if isinstance(which, str) else which)
        factors = self.model.factors
        out = [np.full((len(chosen), f.grouping.m, f.stop - f.start), np.nan) for f in factors]
        for k, mask in enumerate(self.masks):
            wanted = np.flatnonzero(self._owner[chosen] == k)
            if mask.batch is None or not len(wanted):
                continue
            found = mask.batch.blups(self._place[chosen[wanted]])
            for whole, f, own, effects in zip(out, factors, mask.batch.model.factors, found, strict=True):
                whole[np.ix_(wanted, f.grouping.locate(own.grouping.labels))] = effects
        wanted = np.flatnonzero(self._owner[chosen] < 0)
        if self.scattered is not None and len(wanted):
            own = self.scattered[1].random_effects(self._place[chosen[wanted]])
            for whole, values in zip(out, own.values() if isinstance(own, dict) else (own,), strict=True):
                whole[wanted] = values
        return out[0] if len(out) == 1 else {f.grouping.name: v for f, v in zip(factors, out, strict=True)}

    def with_responses(self, Y: Any) -> MaskedBatch:
        """This batch with its responses, where they are gone: after a pickle, which leaves them out.

        Parameters
        ----------
        Y : (n_responses, nobs) array or table
            What was fitted, NaN where it is missing.

        Raises
        ------
        LMMError
            For Y of another shape, or with other missing values; for other numbers when they are used.
        """
        responses, labels = responses_of(self.model, Y)
        if len(responses) != len(self):
            raise LMMError(f"Y has {len(responses)} responses and the batch {len(self)}: give what was fitted")
        check_labels(self.labels, labels)
        masks = masks_with_responses(self.masks, responses)
        if self.scattered is not None:
            self.scattered[1].with_responses(responses[self.scattered[0]])
        return MaskedBatch(self.model, masks, self.labels, self.scattered)

    def _places(self, which: Any) -> NDArray[np.intp]:
        """Positions that a slice, a mask, positions or labels choose."""
        if isinstance(which, list) and any(isinstance(one, str) for one in which):
            which = [self._place_of(one) for one in which]
        return chosen_places(which, len(self))

    def _place_of(self, label: Any) -> int:
        found = np.flatnonzero(np.zeros(0) if self.labels is None else self.labels == label)
        if not len(found):
            raise LMMError(f"batch[{label!r}]: no response has this label; give a position")
        return int(found[0])

    def _part(self, chosen: NDArray[np.intp]) -> MaskedBatch:
        masks, scattered = some_masks(self.masks, self.scattered, chosen)
        labels = None if self.labels is None else self.labels[chosen]
        return MaskedBatch(self.model, masks, labels, scattered)

    @staticmethod
    def concat(batches: Sequence[MaskedBatch]) -> MaskedBatch:
        """One batch of the responses of several, in this order.

        Parameters
        ----------
        batches : sequence of MaskedBatch
            Of one model, all by REML or all by ML.

        Returns
        -------
        MaskedBatch
            With labels where all have labels.

        Raises
        ------
        LMMError
            For no batch, or batches of different models or criteria.
        """
        return _joined(list(batches))

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


def _joined(batches: list[MaskedBatch]) -> MaskedBatch:
    """See `MaskedBatch.concat`."""
    if not batches:
        raise LMMError("concat needs at least one batch")
    first = batches[0]
    for k, batch in enumerate(batches):
        if not isinstance(batch, MaskedBatch) or not same_design(first.model, batch.model):
            raise LMMError(f"batches[{k}] is not of the responses of one model; use one model's fit_many for all")
    known = [batch.labels for batch in batches if batch.labels is not None]
    labels = np.concatenate(known) if len(known) == len(batches) else None
    kinds = {part.reml for batch in batches for _, part in batch._parts()}
    if len(kinds) > 1:
        raise LMMError("some of the batches are by REML and others by ML; fit all alike")
    masks, scattered = joined_masks((batch.masks, batch.scattered) for batch in batches)
    return MaskedBatch(first.model, masks, labels, scattered)


def _rank(batch: BatchFit | EachResult) -> Array:
    """Fixed effects that the rows determine (n,)."""
    if isinstance(batch, EachResult):
        return batch.rank.astype(np.float64)
    return np.where(batch.status < 0, 0.0, float(batch.model.problem.rank))


def _offset(batch: BatchFit) -> Array:
    return np.full(len(batch), offset_mean(batch.model) or 0.0)


def _estimable(batch: BatchFit, parsed: Hypothesis) -> bool:
    """Whether the observations of a mask determine a hypothesis."""
    try:
        check_estimable(batch.model, parsed.L, parsed.names)
    except LMMError:
        return False
    return True

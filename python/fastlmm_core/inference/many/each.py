"""Estimates for many problems, each with a design of its own, and their tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...estimation.many.effects import group_effects
from ...estimation.many.masks import responses_of
from ...estimation.many.parts import chosen_places
from ...estimation.many.stack import Stack, same_values
from ...estimation.many.stack_fit import FIELDS, StackFit, fit_stack, joined_stacks, part_of_stack
from ...estimation.many.values import ResponseStack
from ...support.arguments import checked
from ...support.checks import float_array
from ...support.display import LINES, Cells, Shown, first_lines
from ...support.text_tables import estimate_cells
from ...support.types import Array
from ..anova import hypotheses
from ..hypotheses import Hypothesis
from ..likelihood_ratio.compare import Null, check_null
from ..likelihood_ratio.own_designs import FitsToCompare, against_linear, compared
from ..likelihood_ratio.random_effects import effects_of, kept_effects
from .means import Functions
from .own_designs import OwnDesigns, Whole, needs_formula
from .own_permutation import Source
from .own_tests import PART, coefficient_errors, tested, tested_alone
from .tests import BatchTest
from .variances import BatchVariances, Estimated, Shared, delta_errors, fill_alone, leave_boundary

if TYPE_CHECKING:
    from ...design.design import Design
    from ...estimation.fit import Fit
    from ...estimation.many.flat_rows import FlatRows
    from ...estimation.model import Model
    from ...formula.coding import FixedTerm
    from ...support.seeds import Seed
    from ..likelihood_ratio.many import BatchComparison

__all__ = ["EachResult", "statistic_of"]


@checked
class EachResult(Shown, StackFit, OwnDesigns):
    """Estimates for many problems, each with a design of its own; every array has a leading axis over problems.

    ``result[i]`` is the full result of one problem, by position or label; ``result[3:5]`` are several.

    Attributes
    ----------
    params, bse : (n_problems, p) arrays
        Fixed effects and standard errors; NaN for columns that are dropped in a problem because they depend on those
        before them there, and for problems that could not be fitted.
    sigma2, criterion, gradient_norm : (n_problems,) arrays
    nobs, n_groups, rank, n_evaluations : (n_problems,) int arrays
        Rows, groups, columns of X kept, and evaluations of the criterion.
    reasons : dict
        Why problems could not be fitted, by position.
    """

    @property
    def _one(self) -> str:
        return self.stack.one

    @property
    def _record(self) -> type[Fit]:
        return self.kind

    @property
    def _shared(self) -> Design:
        return self.stack.design

    @property
    def _outcome(self) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
        return self.covariance, self.converged, self.singular

    @property
    def _names(self) -> NDArray[Any]:
        return self.labels

    @property
    def labels(self) -> NDArray[Any]:
        """Labels of the problems (n_problems,), sorted."""
        return self.stack.labels

    @property
    def exog_names(self) -> tuple[str, ...]:
        """Names of the fixed effects."""
        return self.stack.design.exog_names

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each optimum is certified (n_problems,)."""
        return np.asarray(self.status > 0)

    @property
    def singular(self) -> NDArray[np.bool_]:
        """Whether each estimate lies on the boundary (n_problems,)."""
        return np.asarray(self.status == 2)

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Problems that could not be fitted; `reasons` says why."""
        return np.flatnonzero(self.status < 0)

    @property
    def aic(self) -> Array:
        """Akaike's information criterion (n_problems,)."""
        return self.criterion + 2.0 * self._n_parameters

    @property
    def bic(self) -> Array:
        """Schwarz's information criterion with log(nobs) (n_problems,)."""
        return np.asarray(self.criterion + np.log(np.maximum(self.nobs, 1)) * self._n_parameters, dtype=np.float64)

    @property
    def _n_parameters(self) -> Array:
        return np.asarray(self.rank + self.theta_o.shape[1] + 1, dtype=np.float64)

    @property
    def theta(self) -> Array:
        """Relative covariance parameters (n_problems, k), in lme4's order."""
        rows, columns = self.stack.design.structure.positions
        return np.asarray(self.relative_factor[:, rows, columns])

    @property
    def covariance(self) -> Array:
        """Covariance matrices of the random effects of all terms (n_problems, q, q)."""
        return np.asarray(self.sigma2[:, None, None] * (self.relative_factor @ self.relative_factor.transpose(0, 2, 1)))

    @property
    def df(self) -> Array:
        """Satterthwaite's degrees of freedom of the t tests that each fixed effect is zero (n_problems, p)."""
        return self.satterthwaite.copy()

    def cov_params(self) -> Array:
        """Covariance matrices of the fixed effects (n_problems, p, p); NaN for dropped columns."""
        p = self.params.shape[1]
        out = self.sigma2[:, None, None] * self.contrasts(np.eye(p))[0]
        for i in tested_alone(self):
            out[i] = self.one(i).cov
        return out

    def _whole(self) -> Model:
        return self.stack.whole()

    def _terms(self) -> tuple[FixedTerm, ...]:
        return self.stack.terms()

    def _hypotheses(self, kind: str) -> tuple[dict[str, Array], tuple[str, ...]]:
        stack = self.stack
        if kind != "III" or not isinstance(stack, ResponseStack) or not stack.covariates:
            return super()._hypotheses(kind)
        # those of the formula, and the coefficients of each covariate
        found, notes = hypotheses(cast("Fit", Whole(stack.of_model.fittable())), kind)
        own, first = np.eye(self.params.shape[1]), stack.of_model.exog.shape[1]
        out = {name: np.pad(L, ((0, 0), (0, len(own) - L.shape[1]))) for name, L in found.items()}
        out |= {term.name: own[list(term.columns)] for term in stack.terms() if term.columns.start >= first}
        return out, notes

    def _functions(self, ddf: str, information: str) -> Functions:
        stack = self.stack
        if not isinstance(stack, ResponseStack) or not stack.covariates:
            return super()._functions(ddf, information)
        model = stack.of_model.fittable()
        needs_formula(model)
        centred, params = stack.at_means(self.params)
        fits = EachResult(centred, self.kind, self.reml)
        for name in FIELDS:
            setattr(fits, name, getattr(self, name))
        fits.params, fits.reasons, fits._alone = params, self.reasons, self._alone
        more = ((0, 0), (0, len(stack.covariates)))

        def tested(asked: Sequence[Hypothesis]) -> list[BatchTest]:
            return fits.tested([one._replace(L=np.pad(one.L, more)) for one in asked], ddf, information)

        return Functions(model, self.kind, self._called, self._offsets(), tested)

    def _flat(self) -> tuple[NDArray[np.intp], FlatRows]:
        """Positions and rows of the problems that were fitted."""
        self.refuse_changes()
        fitted = np.flatnonzero(self.status >= 0)
        return fitted, self.stack.flat(fitted)

    def _offsets(self) -> Array:
        out = np.zeros(len(self))
        fitted, flat = self._flat()
        if flat.offset is not None:
            out[fitted] = flat.sums(flat.offset) / flat.counts
        return out

    def _shares(self) -> Shared:
        self.refuse_changes()
        n, p, q = len(self), self.params.shape[1], self.stack.design.structure.q
        of_z, of_x, residual = np.zeros((n, q, q)), np.zeros((n, p, p)), self.sigma2.copy()
        fitted = np.flatnonzero(self.status >= 0)
        for begin in range(0, len(fitted), PART):
            part = fitted[begin : begin + PART]
            rows = self.stack.flat(part)
            of_z[part], of_x[part] = rows.grams()
            residual[part] *= rows.inverse_weights()
        return Shared(self._shared, self.params, self.covariance, self.sigma2, of_z, of_x, residual)

    def _components(self) -> BatchVariances:
        out = Estimated(self._shared, self.covariance, self.sigma2).table(self._called)
        by_lanes = (self.by_lanes == 1) & (self.status > 0)
        some = np.flatnonzero(by_lanes)
        _, _, shift, hess = self.contrasts(np.eye(1, self.params.shape[1]))
        nu = np.asarray(self.nobs - (self.rank if self.reml else 0), dtype=np.float64)[some]
        at = self.z_maps[some], self._shared.structure.factors(self.theta_o[some]), self.sigma2[some]
        out.std_error[some] = delta_errors(self._shared, (shift[some], hess[some], nu), at)
        leave_boundary(self._shared, out)
        fill_alone(out, np.flatnonzero((self.status >= 0) & ~by_lanes), self.one)
        return out

    def _to_compare(self) -> FitsToCompare:
        covariates = getattr(self.stack, "covariates", {})
        return FitsToCompare(
            self._called, self.reml, self.criterion, self.converged, np.asarray(self.rank, dtype=np.intp),
            np.asarray(self.nobs, dtype=np.intp), (self._shared.exog, *covariates.values()), self.stack.model,
            lambda i: self.relative_factor[i],
        )  # fmt: skip

    def _effect_tests(self, term: str | None, null: Null, n_sim: int | None, seed: Seed) -> dict[str, BatchComparison]:
        check_null(null, n_sim, seed)
        self.refuse_changes()
        own, found = self._to_compare(), {}
        for effect in effects_of(self._whole(), term):
            keep = [j for j in range(self._shared.structure.q) if j not in effect.columns]
            if keep:
                smaller = EachResult(self.stack.with_random(kept_effects(self._shared, keep)), self.kind, self.reml)
                fit_stack(smaller, None, False, self.reasons)
                found[effect.name] = compared(own, smaller._to_compare(), effect.name, null, n_sim, seed)
            else:
                found[effect.name] = against_linear(own, self._linear_criteria(), effect.name, null, n_sim, seed)
        return found

    def _linear_criteria(self) -> Array:
        """Criteria of the linear models without random effects."""
        out, zero = np.full(len(self), np.nan), np.zeros(self.theta_o.shape[1])
        for i in np.flatnonzero(self.converged).tolist():
            out[i] = self.stack.model(i).estimable().evaluate(zero, reml=self.reml).value
        return out

    def _source(self) -> Source:
        self.refuse_changes()
        if self.stack.kernel is None:
            raise LMMError(
                "permute() of fits with designs of their own takes one grouping factor; permute complete responses "
                "on one design, or use test(ddf='kenward-roger')"
            )
        return Source(
            self.stack, self.params, self.status >= 0, self.reml,
            lambda stack: EachResult(stack, self.kind, self.reml), statistic_of,
        )  # fmt: skip

    def _coefficients(self, ddf: str, information: str) -> tuple[Array, Array]:
        return coefficient_errors(self, ddf, information)

    def tested(self, asked: Sequence[Hypothesis], ddf: str, information: str) -> list[BatchTest]:
        """Tests of several hypotheses of every problem; see `tests`.

        Parameters
        ----------
        asked : sequence of Hypothesis
        ddf, information
            As for `tests`.
        """
        return tested(self, asked, ddf, information)

    def __getitem__(self, i: Any) -> Any:
        """The full result of one problem, by position (an integer) or label, or the fits of some of them.

        Parameters
        ----------
        i : int, label, slice, mask or list
            ``result[3]`` and ``result["TP53"]`` are results of one problem; ``result[3:5]``,
            ``result[result.converged]`` and ``result[["TP53", "MYC"]]`` are of several, which are not fitted again.

        Raises
        ------
        IndexError
            For a position outside.
        LMMError
            For an unknown label, or a problem that could not be fitted: why.
        """
        if isinstance(i, (slice, list, np.ndarray)) and not (isinstance(i, np.ndarray) and i.ndim == 0):
            return part_of_stack(self, self._places(i))
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            return self.of(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"problem {i} of {len(self)}")
        return self.one(int(i) % len(self))

    def random_effects(self, which: Any = None) -> Any:
        """BLUPs of the random effects, computed on request from the rows.

        Parameters
        ----------
        which : indices, labels or slice, optional
            Fits wanted; by default all.

        Returns
        -------
        (n_wanted, n_groups, q) array
            Of responses on one design (`LinearMixedModel.fit_many`), by the groups of that design: NaN for groups of
            which a response has no observation, and where it could not be fitted.
        frame in the library of the data, or dict of arrays
            Of `fit_each` and `fit_by`, whose problems have groups of their own: a row for each problem and group, with
            a column for each effect; none for problems that could not be fitted.

        A dict by factor where there are several.

        Raises
        ------
        LMMError
            For an unknown label, or positions outside.
        """
        chosen, design = self._places([which] if isinstance(which, str) else which), self._shared
        self.refuse_changes()
        found, out = group_effects(self, chosen), {}
        for factor, own in zip(design.factors, found, strict=True):
            grouping = factor.grouping
            if isinstance(self.stack, ResponseStack):
                values = np.full((len(chosen), grouping.m, factor.stop - factor.start), np.nan)
                values[own.problem, own.level] = own.effects
                out[grouping.name] = values
                continue
            columns = {self._one: self.labels[chosen[own.problem]], grouping.name: grouping.labels[own.level]}
            names = design.random.effect_names[factor.columns]
            columns |= {name: own.effects[:, j] for j, name in enumerate(names)}
            out[grouping.name] = design.table(columns)
        return next(iter(out.values())) if len(out) == 1 else out

    def with_responses(self, Y: Any) -> EachResult:
        """This result: it carries its rows and responses, pickles of it too.

        Parameters
        ----------
        Y : (n_responses, nobs) array or table
            What was fitted; y (n,) of `fit_each`.

        Raises
        ------
        LMMError
            For other responses.
        """
        stack = self.stack
        if isinstance(stack, ResponseStack):
            known, given = stack.Y, responses_of(stack.of_model, Y)[0]
        else:
            known, given = cast("Stack", stack).y, float_array(Y, "Y", 1)
        if not same_values(known, given):
            raise LMMError(f"Y is not what was fitted: {self._one}s have other values, or another number of them")
        return self

    def _places(self, which: Any) -> NDArray[np.intp]:
        """Positions that a slice, a mask, positions or labels choose."""
        if isinstance(which, list) and any(isinstance(i, str) for i in which):
            which = [int(self._labelled(label)[0]) for label in which]
        return chosen_places(which, len(self))

    def _labelled(self, label: Any) -> NDArray[np.intp]:
        found = np.flatnonzero(self.labels == label)
        if not len(found):
            raise LMMError(f"no problem has the label {label!r}; labels are {self.labels[:3].tolist()} and so on")
        return found

    @staticmethod
    def concat(results: Sequence[EachResult]) -> EachResult:
        """The fits of several results, in this order.

        Parameters
        ----------
        results : sequence of EachResult
            With the same columns and random effects, all by REML or all by ML.

        Returns
        -------
        EachResult

        Raises
        ------
        LMMError
            For no result, or results of different columns, kinds or criteria.
        """
        return joined_stacks(list(results))

    def of(self, label: Any) -> Fit:
        """The full result of the problem with a label.

        Parameters
        ----------
        label
            As in the column, or the array, that told the problems apart.

        Raises
        ------
        LMMError
            For an unknown label, or a problem that could not be fitted: why.
        """
        return self.one(int(self._labelled(label)[0]))

    def _shown(self) -> Iterator[str | Cells]:
        yield repr(self)[1:-1]
        some = range(min(len(self), LINES))
        cells = [
            estimate_cells(self.params[some, j].tolist(), self.bse[some, j].tolist(), 3)
            for j in range(self.params.shape[1])
        ]
        rows = [
            [
                str(self.labels[i]),
                *(column[i] for column in cells),
                f"{np.sqrt(self.sigma2[i]):.4g}",
                "yes" if self.converged[i] else "no",
            ]
            for i in some
        ]
        yield Cells(["", *self.exog_names, "sigma", "certified"], first_lines(rows, count=len(self)))

    def __repr__(self) -> str:
        kind = "REML" if self.reml else "ML"
        return (
            f"<EachResult: {len(self)} {kind} fits, {int(self.converged.sum())} certified, "
            f"{int(self.singular.sum())} singular, {len(self.invalid)} not fitted>"
        )


def statistic_of(fits: EachResult, hypothesis: Hypothesis) -> Array:
    """t of one row, else F (n_problems,)."""
    return fits.tested([hypothesis], "residual", "auto")[0].statistic

"""Estimates for many responses on one design."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import LMMError
from ...kernels.records.batches import BatchScores
from ...support.types import Array
from ..estimate import estimate
from ..fit import Fit
from ..model import Model
from ..optimum import SINGULAR
from .one_factor import effects_design

__all__ = ["BOUNDARY", "BatchFit", "Curvature"]


BOUNDARY = 2
"""Status of a certified optimum on the boundary; 1: inside, 0: not certified, below 0: cannot be fitted."""

CHUNK_BYTES = 2**23
"""Size of the pieces of responses that are held at a time."""


class Curvature(NamedTuple):
    """What tests need of responses that are not kept.

    Attributes
    ----------
    shift : (count, k) array
        -(1 / r^2) d r^2 / d theta.
    hess : (count, k (k + 1) / 2) array
        Lower triangles of the second derivatives of the criterion, by rows.
    singles : dict of int to array
        Responses that were fitted one by one.
    """

    shift: Array
    hess: Array
    singles: dict[int, Array]

    def hessians(self, part: NDArray[np.intp]) -> Array:
        """Those of some responses (n, k, k)."""
        k = self.shift.shape[1]
        out = np.empty((len(part), k, k))
        i, j = np.tril_indices(k)
        out[:, i, j] = out[:, j, i] = self.hess[part]
        return out

    def some(self, chosen: NDArray[np.intp]) -> Curvature:
        """That of some responses, in this order."""
        singles = {at: self.singles[i] for at, i in enumerate(chosen.tolist()) if i in self.singles}
        return Curvature(self.shift[chosen], self.hess[chosen], singles)

    @staticmethod
    def joined(parts: Sequence[Curvature | None]) -> Curvature | None:
        """That of several batches, one after the other; None where one has none."""
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        first = np.cumsum([0, *(len(part.shift) for part in known)]).tolist()
        singles = {at + i: y for at, part in zip(first, known, strict=False) for i, y in part.singles.items()}
        return Curvature(
            np.concatenate([part.shift for part in known]), np.concatenate([part.hess for part in known]), singles
        )


class BatchFit:
    """Estimates for many responses; every array has a leading axis over responses.

    Parameters
    ----------
    model : Model
        The design, with any response.
    kind : type
        Of the record of one of the fits.
    reml : bool
    count : int
        Responses.
    responses : (count, nobs) array or None
        None where they are not kept.

    Attributes
    ----------
    params, bse : (count, p) arrays
        Fixed effects and standard errors; NaN for dropped columns and for responses that could not be fitted.
    sigma2, criterion, gradient_norm : (count,) arrays
    theta_o : (count, k) array
        Covariance parameters in conditioned units, those of structured residuals after them.
    status : (count,) int array
        2: certified, on the boundary; 1: certified; 0: not certified; below 0: could not be fitted.
    satterthwaite : (count, p) array
        Degrees of freedom of the coefficients.
    alone : (count,) bool array
        Which responses were fitted one by one.
    n_evaluations : (count,) int array
    labels : (count,) array or None
        Labels of the responses: the names of the columns that they were.
    seals : (count, 2) uint64 array or None
        What tells whether responses that are the caller's are still those that were fitted, see `kernels.line_seals`;
        zeros for those that nobody can change.
    gone : str
        Why the responses are not there, where they are not.
    curvature : Curvature or None
        What tests need of the responses of a stream.
    """

    def __init__(self, model: Model, kind: type[Fit], reml: bool, count: int, responses: Any) -> None:
        p, n_par = model.exog.shape[1], model.structure.n_parameters
        residual = model.design.residual
        n_par += 0 if residual is None else residual.n_parameters
        self.model = model
        self.kind = kind
        self.reml = reml
        self.responses = responses
        self.labels: NDArray[Any] | None = None
        self.seals: NDArray[np.uint64] | None = None
        self.gone = "the responses were given as a stream and are not kept"
        self.curvature: Curvature | None = None
        self.theta_o = np.empty((count, n_par))
        self.params = np.empty((count, p))
        self.bse = np.empty((count, p))
        self.sigma2 = np.empty(count)
        self.criterion = np.empty(count)
        self.gradient_norm = np.empty(count)
        self.status = np.empty(count, dtype=np.intc)
        self.n_evaluations = np.empty(count, dtype=np.intc)
        self.satterthwaite = np.empty((count, p))
        self.alone = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.sigma2)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "relative_factor"}
        if not hasattr(self.responses, "draws_again") and self.responses is not None:
            gone = "the responses are not part of a pickle; give them again by with_responses(Y)"
            state |= {"responses": None, "gone": gone}
        return state

    @property
    def n_parameters(self) -> int:
        """Fixed effects, covariance parameters and the residual variance, as lme4 counts them."""
        return self.model.problem.rank + self.model.n_covariance_parameters + 1

    @property
    def aic(self) -> Array:
        """Akaike's information criterion (count,)."""
        return self.criterion + 2.0 * self.n_parameters

    @property
    def bic(self) -> Array:
        """Schwarz's information criterion with log(nobs) (count,)."""
        return self.criterion + float(np.log(self.model.nobs)) * self.n_parameters

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each optimum is certified."""
        return np.asarray(self.status > 0)

    @property
    def singular(self) -> NDArray[np.bool_]:
        """Whether each estimate lies on the boundary."""
        return np.asarray(self.status == BOUNDARY)

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Responses that could not be fitted."""
        return np.flatnonzero(self.status < 0)

    @property
    def llf(self) -> Array:
        """Maximised log-likelihoods."""
        return -0.5 * self.criterion

    @cached_property
    def relative_factor(self) -> Array:
        """Lambda in natural units (n_responses, q, q)."""
        structure, inner = self.model.structure, self.factor_o
        problem = self.model.problem
        out = structure.natural(problem.z_map, inner)
        edge = self.singular
        negligible = SINGULAR * np.sqrt(problem.levels / problem.n)
        out[edge] = structure.natural(problem.z_map, inner[edge], negligible)
        return out

    @property
    def covariance(self) -> Array:
        """Covariance matrices of the random effects of all terms (count, q, q)."""
        return np.asarray(self.sigma2[:, None, None] * (self.relative_factor @ self.relative_factor.transpose(0, 2, 1)))

    @property
    def theta(self) -> Array:
        """Relative covariance parameters in natural units (n_responses, k)."""
        rows, columns = self.model.structure.positions
        return np.column_stack([self.relative_factor[:, rows, columns], self.phi])

    @property
    def phi(self) -> Array:
        """Parameters of structured residuals, without constraints (n_responses, k); none where they are independent."""
        return self.theta_o[:, self.model.structure.n_parameters :]

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrices of the random effects by term (n_responses, q, q)."""
        whole = self.covariance
        return {
            name: whole[:, block.start : block.stop, block.start : block.stop]
            for name, block in zip(self.model.term_names, self.model.structure.blocks, strict=True)
        }

    def blups(self, chosen: NDArray[np.intp]) -> list[Array]:
        """BLUPs of some responses, an (n_chosen, m, q) array per factor.

        Raises
        ------
        LMMError
            Where the responses are not kept.
        """
        if self.responses is None:
            raise LMMError(f"{self.gone}: fit an array to have BLUPs")
        if self.model.one_by_one:
            each = [self.one(int(i)).blups for i in chosen]
            return [np.array(parts) for parts in zip(*each, strict=True)]
        design = effects_design(self.model)
        out = [np.empty((len(chosen), f.grouping.m, f.stop - f.start)) for f in self.model.factors]
        size = max(1, CHUNK_BYTES // (8 * self.model.nobs * self.model.structure.q))
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            y = self.fitted_responses(part)
            found = design.effects(y, self.params[part], self.factor_o[part])
            for whole, piece in zip(out, found, strict=True):
                whole[begin : begin + size] = piece
        return out

    def fitted_responses(self, chosen: NDArray[np.intp]) -> Array:
        """Some of the responses that are kept, as they were fitted (n_chosen, nobs).

        Raises
        ------
        LMMError
            For responses that the caller has changed since.
        """
        Y = np.ascontiguousarray(self.responses[chosen], dtype=np.float64)
        if self.seals is not None:
            seals = self.seals[chosen]
            changed = (kernels.line_seals(Y) != seals).any(axis=1) & seals.any(axis=1)
            if changed.any():
                raise LMMError(
                    f"Y has been changed since it was fitted (first: response {chosen[np.argmax(changed)]}); fit it "
                    "again, or give fit_many a copy that stays, e.g. Y.copy()"
                )
        return Y

    def seen(self, chosen: NDArray[np.intp]) -> tuple[Array, BatchScores | None]:
        """What fits see of some of the responses: their scores and what these mean, or the responses themselves."""
        found = self.responses.scores(chosen) if hasattr(self.responses, "scores") else None
        if found is not None and found[1].model.problem is self.model.problem:
            return found[0], found[1].meaning
        return self.fitted_responses(chosen), None

    def place(self, label: Any) -> int:
        """Position of the response with a label.

        Raises
        ------
        LMMError
            For a label that no response has, or several have.
        """
        if self.labels is None:
            raise LMMError(
                f"which={label!r}: the responses have no labels; give positions, or fit a table with one "
                "response per column"
            )
        found = [i for i, known in enumerate(self.labels) if known == label]
        if len(found) == 1:
            return found[0]
        if found:
            raise LMMError(f"{len(found)} responses have the label {label!r}: give a position, e.g. {found[0]}")
        close = difflib.get_close_matches(str(label), [str(known) for known in self.labels], n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise LMMError(f"no response has the label {label!r}{hint}")

    def one(self, i: int) -> Fit:
        """The full record of one response.

        Raises
        ------
        LMMError
            Where the responses are not kept, or this one could not be fitted.
        """
        if self.responses is not None:
            y = self.fitted_responses(np.array([i]))[0]
        elif self.curvature is not None and i in self.curvature.singles:
            y = self.curvature.singles[i]
        else:
            raise LMMError(f"{self.gone}; fit this one with model.refit(y)")
        return estimate(self.kind, self.model.with_response(y), self.reml)

    @property
    def factor_o(self) -> Array:
        """Lambda in conditioned units (count, q, q)."""
        structure = self.model.structure
        inner = np.zeros((len(self), structure.q, structure.q))
        rows, columns = structure.positions
        inner[:, rows, columns] = self.theta_o[:, : len(rows)]
        return inner

"""A design with a response, conditioned: what estimation and inference work on.

As long as the list of what they ask of it: most methods pass it on to the design or the problem.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..covariance.parameters import FREE, Block, CovarianceStructure
from ..design.design import Design, Specification
from ..design.grouping import Factor, Grouping
from ..design.ownership import Seals, exchanged
from ..design.residual import ResidualPart
from ..design.streamed import StreamedDesign, refuse_rows
from ..design.terms import RandomPart
from ..engines.choose import problem_of
from ..engines.protocol import Engine, Problem, linear_engine, linear_problem
from ..errors import LMMError
from ..support.arguments import checked
from ..support.seeds import stream
from ..support.threads import threads_for
from ..support.types import Array
from .natural_units import Evaluation, conditioned_theta, evaluated, evaluated_structured, structured_theta

__all__ = ["Model"]

T = TypeVar("T")

ROUNDING = 1e-9
"""By how much cross-products of the same rows may differ, relative to the largest of their kind."""

TYPICAL = np.array([0x9E3779B97F4A7C15, 0xD1B54A32D192ED03], dtype=np.uint64)
"""Key of the stream of responses that serve for nothing but scales and starts: no covariate comes from it."""


def _alike(problem: Any, again: Any) -> bool:
    """Whether two problems have the same numbers, up to rounding."""
    if type(problem) is not type(again):
        return False
    for name in getattr(problem, "_fields", None) or [field.name for field in fields(problem)]:
        one, other = getattr(problem, name), getattr(again, name)
        if one is not other and is_dataclass(one) and not _alike(one, other):
            return False
        if not isinstance(one, (np.ndarray, float)):
            continue
        if np.shape(one) != np.shape(other):
            return False
        a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
        if a.size:
            with np.errstate(all="ignore"):
                near = np.abs(a - b) <= ROUNDING * np.abs(a).max(axis=0)
            if not (near | (a == b) | (np.isnan(a) & np.isnan(b))).all():
                return False
    return True


class Model:
    """A design with a response, conditioned.

    Parameters
    ----------
    design : Design
    y : (n,) array or None
        None for a design without a response: parameters can be stated for it, not estimated.
    given : bool
        Whether the parameters will be stated, so that designs and responses that leave them open are taken too.
    n_jobs : int, optional
        Threads for the passes over the rows.

    Attributes
    ----------
    design : Design
    problem : Problem
    given : bool

    Raises
    ------
    LMMError
        For input that cannot be fitted; the message names the argument, the place and the remedy.
    """

    def __init__(self, design: Design, y: Array | None, given: bool = False, n_jobs: int | None = None) -> None:
        self.given = given or y is None
        n = len(design.exog if y is None else y)
        design.check(n, self.given)
        self.problem: Problem
        with threads_for(n_jobs, n):
            self.problem, groupings = problem_of(design, y, self.given)
        design.count(groupings)
        self._design = design
        self._y = y
        self._seals: Seals | None = None
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def of_sums(cls, design: StreamedDesign, problem: Problem) -> Self:
        """A model from a problem whose rows are not held."""
        model = cls.__new__(cls)
        model.__setstate__({"_design": design, "_y": None, "_seals": None, "given": False, "problem": problem})
        return model

    @classmethod
    def of(cls, design: Design, y: Array | None, given: bool = False) -> Self:
        """A model of this kind from a design and a response."""
        return cls(design, y, given)

    def with_response(self, y: Array) -> Self:
        """The same design with another response."""
        return self.of(self.design, y)

    def estimable(self) -> Self:
        """This model, with all checked that estimates need.

        Raises
        ------
        LMMError
            For a model without a response, or a design or response that leaves parameters open.
        """
        return self.with_response(self.endog) if self.given else self

    def fittable(self, draw: Callable[[np.random.Generator], Array] | None = None) -> Self:
        """This model as others' responses are fitted to it: conditioned, where it is not, by a response that is drawn.

        Scales and starts come from that response, and nothing else.

        Parameters
        ----------
        draw : callable, optional
            A typical response (n,); by default white noise.

        Raises
        ------
        LMMError
            For a design that leaves parameters open.
        """
        if not self.given:
            return self
        make = draw or (lambda rng: np.asarray(rng.standard_normal(self.nobs)))
        return self.once("fittable", lambda: self.with_response(make(stream(TYPICAL, 0))))

    def rows(self, rows: Any) -> Self:
        """The model of some of the rows; levels without rows are left out."""
        return self.of(self.design.rows(rows), self.endog[rows])

    def _settle(self) -> None:
        """Take copies of what is the caller's, now that rows are read again.

        Raises
        ------
        LMMError
            For arrays that have been changed since the model was made: their order, or cross-products.
        """
        seals = self._seals
        if seals is None:
            return
        changed = seals.broken()
        if not changed:
            try:
                again, _ = problem_of(replace(self._design), self._y, self.given)  # a design of which nothing is known
                same = _alike(self.problem, again)
            except LMMError:  # what they have become cannot be fitted
                same = False
            changed = () if same else seals.names
        if changed:
            which = f"{changed[0]} has" if len(changed) == 1 else f"one of {', '.join(changed)} has"
            raise LMMError(
                f"{which} been changed since the model was made, and its rows are needed again; make the model anew, "
                f"or give it a copy that stays, e.g. {changed[0].partition('[')[0]}.copy()"
            )
        self._design, self._y = exchanged(self._design, self._y, seals.copies())
        self._seals = None

    # ---- the response --------------------------------------------------------------------------

    @property
    def has_response(self) -> bool:
        """Whether there is a response."""
        return self._y is not None or self.streamed

    @property
    def streamed(self) -> bool:
        """Whether the rows were read in pieces and are not held."""
        return isinstance(self._design, StreamedDesign)

    @property
    def endog(self) -> Array:
        """Response (n,).

        Raises
        ------
        LMMError
            For a design without a response.
        """
        return self.require_response()

    def require_response(self) -> Array:
        """The response, or an error that says what needs one."""
        if self.streamed:
            refuse_rows("y, the response,")
        if self._y is None:
            raise LMMError(
                "this model has no response: residuals, random effects and the likelihood need one; give it as y or "
                "in the column of the data that the formula names, or give predict(observed=...) observations of the "
                "groups that are to be predicted"
            )
        self._settle()
        return self._y

    @property
    def two_values(self) -> tuple[float, float] | None:
        """The values of a response that has no others; None elsewhere, and where rows are not held."""
        y = self._y
        if y is None or len(np.unique(y[:1000])) > 2:
            return None
        low, high = float(y.min()), float(y.max())
        return (low, high) if low < high and bool(((y == low) | (y == high)).all()) else None

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key and kept with the model."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def needs_rows_to_refit(self, what: str) -> None:
        """Refuse what fits models of other columns where the rows are not held.

        Raises
        ------
        LMMError
        """
        if self.streamed:
            raise LMMError(
                f"{what} fits models of other columns, and the rows of this one were read in pieces and summed, not "
                "held; fit the smaller formula to the source too, and compare() the results"
            )

    def needs_independent_residuals(self, what: str) -> None:
        """Refuse what takes the residuals for independent where they have a structure.

        Raises
        ------
        LMMError
        """
        if self.residual is not None:
            raise LMMError(
                f"{what} takes residuals that are independent given the random effects, and those of this model have "
                f"the structure {self.residual.term}"
            )

    def needs_unknown_variance(self, what: str, remedy: str) -> None:
        """Refuse what estimates the residual variance where it is known.

        Raises
        ------
        LMMError
        """
        if self.sigma is not None:
            raise LMMError(
                f"{what} estimates the residual variance, and that of this model is known (sigma=); {remedy}"
            )

    def needs_free_covariances(self, what: str) -> None:
        """Refuse what takes the variances and covariances of random effects for free where they are restricted.

        Raises
        ------
        LMMError
        """
        names = zip(self.term_names, self.structure.blocks, strict=True)
        restricted = [f"{name} ({block.structure})" for name, block in names if block.structure not in FREE]
        if restricted:
            raise LMMError(
                f"{what} takes the variances and covariances of random effects for free parameters, and those of "
                f"{', '.join(restricted)} are restricted; use us() or diag()"
            )

    # ---- the design ----------------------------------------------------------------------------

    @property
    def design(self) -> Design:
        """Everything but the response; its rows are those that the model was made of.

        Raises
        ------
        LMMError
            For large arrays that the caller has changed since.
        """
        if self._seals is not None:
            self._settle()
        return self._design

    @property
    def residual(self) -> ResidualPart | None:
        """How the residuals of a subject vary together; None where they are independent."""
        return self._design.residual

    @property
    def sigma(self) -> float | None:
        """Residual standard deviation of an observation of weight 1 where it is known; None where it is estimated."""
        return self._design.sigma

    def criterion(self) -> Engine:
        """A new engine of the criterion, in which the residual variance is profiled out or known."""
        engine = self.problem.criterion()
        if self.sigma is None:
            return engine
        from .known_variance import KnownVariance

        return KnownVariance(linear_engine(engine), linear_problem(self.problem), self.sigma)

    @property
    def n_covariance_parameters(self) -> int:
        """Parameters of the covariances of random effects, and of the structure of residuals."""
        residual = 0 if self.residual is None else self.residual.n_parameters
        if not self.structure.restricted:
            return self.structure.n_parameters + residual
        from ..covariance.effects.catalogue import blocks_of

        return blocks_of(self.structure).n_parameters + residual

    @property
    def one_by_one(self) -> bool:
        """Whether many responses are tested one after the other: all but variances of effects and sigma^2.

        So it is with structured residuals, with restricted covariances of random effects, and beside a residual
        variance that is known.
        """
        return not self._design.ordinary

    @property
    def exog(self) -> Array:
        """Columns of the fixed effects (n, p)."""
        return self.design.exog

    @property
    def exog_names(self) -> tuple[str, ...]:
        """Names of the columns of the fixed effects."""
        return self._design.exog_names

    @property
    def random(self) -> RandomPart:
        """The random-effects terms."""
        return self.design.random

    @property
    def exog_re(self) -> Array:
        """Columns of the random effects of all terms (n, q)."""
        return self.design.exog_re

    @property
    def exog_re_names(self) -> tuple[str, ...]:
        """Names of the columns of the random effects."""
        return self._design.exog_re_names

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the random-effects terms."""
        return self._design.term_names

    @property
    def effect_names(self) -> tuple[str, ...]:
        """Names of the random effects, with their terms where one factor has two of a name."""
        return self._design.random.effect_names

    @property
    def structure(self) -> CovarianceStructure:
        """Covariance of the random effects."""
        return self._design.structure

    @property
    def n_factors(self) -> int:
        """Number of grouping factors."""
        return len(self._design.random.spans)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The grouping factors, that with most levels first."""
        return self.design.factors

    @property
    def grouping(self) -> Grouping:
        """The grouping factor, that with most levels where there are several."""
        return self.design.grouping

    def factor(self, name: str | None = None) -> Factor:
        """A grouping factor by name, by default that with most levels."""
        return self.design.factor(name)

    def factor_of(self, block: Block) -> Factor:
        """The grouping factor of a term."""
        return self.design.factor_of(block)

    @property
    def weights(self) -> Array | None:
        """Prior weights (n,)."""
        return self.design.weights

    @property
    def root_weights(self) -> Array:
        """Square roots of the prior weights (n,); ones where there are none."""
        return np.ones(self.nobs) if self.weights is None else np.sqrt(self.weights)

    @property
    def offset(self) -> Array | None:
        """Known part of the mean (n,)."""
        return self.design.offset

    @property
    def weighted(self) -> bool:
        """Whether there are prior weights."""
        design = self._design
        return design.weighted if isinstance(design, StreamedDesign) else design.weights is not None

    @property
    def has_offset(self) -> bool:
        """Whether there is an offset."""
        design = self._design
        return design.offset_mean is not None if isinstance(design, StreamedDesign) else design.offset is not None

    @property
    def spec(self) -> Specification | None:
        """The formula, None for a model from arrays."""
        return self._design.spec

    @property
    def response_name(self) -> str:
        """Name of the response."""
        return self._design.response_name

    @property
    def n_dropped(self) -> int:
        """Rows of the caller's table left out for missing values."""
        return self._design.n_dropped

    @property
    def rows_used(self) -> NDArray[np.intp]:
        """Positions in the caller's table of the rows used (nobs,): for pandas they are ``data.iloc[rows_used]``."""
        return self._design.caller_rows.positions

    @property
    def library(self) -> str:
        """Library of the caller's data: "pandas", "polars", "pyarrow" or "dict", also for a model from arrays."""
        return self._design.library

    def table(self, columns: Mapping[str, Any]) -> Any:
        """A table of results in the library of the caller's data; a dict of arrays for a model from arrays."""
        return self._design.table(columns)

    def labelled(self, values: Array) -> Any:
        """One value per coefficient: a Series for pandas, a dict for other tables, the array where there is none."""
        if self.library == "pandas":
            import pandas as pd

            return pd.Series(values, index=list(self.exog_names))
        if not self._design.labelled:
            return values
        return dict(zip(self.exog_names, values.tolist(), strict=True))

    @property
    def nobs(self) -> int:
        """Number of observations."""
        return self.problem.n

    @property
    def coefficients_of_one(self) -> Array:
        """Coefficients (p,) of a response that is 1 everywhere; zeros where X_o has no constant column."""
        out = np.zeros(self.exog.shape[1])
        if self.problem.x_constant:
            values = self.exog[:, self.problem.kept]
            constant = np.flatnonzero((values == values[0]).all(axis=0) & (values[0] != 0.0))[0]
            out[self.problem.kept[constant]] = 1.0 / values[0, constant]
        return out

    @property
    def df_resid(self) -> int:
        """Observations less estimable fixed effects."""
        return self.problem.n - self.problem.rank

    # ---- the criterion -------------------------------------------------------------------------

    @checked
    def evaluate(self, theta: ArrayLike, reml: bool = True, order: int = 0) -> Evaluation:
        """The profiled criterion (-2 log-likelihood) at theta.

        Parameters
        ----------
        theta : (k,) array
            Lower triangle of Lambda by columns (diagonal only for independent effects), in natural units; for
            structured residuals the parameters of the structure without constraints.
        reml : bool
        order : {0, 1, 2}
            Highest derivative to compute.

        Returns
        -------
        Evaluation
            With respect to theta.
        """
        if order not in (0, 1, 2):
            raise LMMError(f"order={order} must be 0, 1 or 2: the highest derivative wanted")
        if self.given:
            return self.once("estimable", self.estimable).evaluate(theta, reml, order)
        engine = self._engine()
        engine.reml = bool(reml)
        if self.residual is not None:
            return evaluated_structured(engine, self.problem, self.residual, theta, order)
        return evaluated(engine, self.problem, theta, order)

    def structured_theta(self, theta: ArrayLike, name: str) -> Array:
        """(theta, phi) of the conditioned problem from that in natural units; `name` is what a message calls it.

        Raises
        ------
        LMMError
            For another length, or values that are not finite.
        """
        assert self.residual is not None
        return structured_theta(self.problem, self.residual, theta, name)

    def conditioned_theta(self, theta: ArrayLike, name: str) -> Array:
        """Theta of the conditioned problem from that in natural units; `name` is what a message calls it.

        Raises
        ------
        LMMError
            For another length, or values that are not finite.
        """
        return conditioned_theta(self.problem, theta, name)

    def _engine(self) -> Engine:
        """An engine of this thread's own: its work space serves one evaluation at a time."""
        # made by the thread that asks first
        local = self.__dict__.get("_local") or self.__dict__.setdefault("_local", threading.local())
        if not hasattr(local, "engine"):
            local.engine = self.criterion()
        found: Engine = local.engine
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_design": self.design, "_y": self._y, "_seals": None, "given": self.given, "problem": self.problem}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _made={})

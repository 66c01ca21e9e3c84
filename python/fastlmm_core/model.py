"""The model: arrays or a formula in, fits out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .covariance.parameters import Block, CovarianceStructure, natural_derivatives, one_block
from .design.grouping import Codes, Factor, Grouping, group_codes
from .design.terms import RandomPart, RandomTerm, Term, random_part, terms_of_arrays
from .engines.one_factor.problem import Problem, condition
from .errors import LMMError
from .estimation.optimize import optimize
from .estimation.residual_limit import refuse_unbounded, with_residual_variance
from .support.blas_threads import one_blas_thread
from .support.checks import float_array
from .tables.columns import native_frame

if TYPE_CHECKING:
    from .batch_result import BatchResult
    from .formula.specification import FormulaSpec
    from .kernels import BatchDesign, ClusterCriterion
    from .result import LMMResult

__all__ = ["Evaluation", "LinearMixedModel", "lmm"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """The criterion at one point.

    Attributes
    ----------
    value : float
    gradient : (k,) array or None
    hessian : (k, k) array or None
    """

    value: float
    gradient: Array | None
    hessian: Array | None


class LinearMixedModel:
    """A Gaussian linear mixed model from arrays.

    y_i = X_i beta + Z_i b_i + e_i with b_i ~ N(0, G) and e_i ~ N(0, sigma^2 / weights), independent
    between groups i (Laird and Ware 1982, Biometrics 38, eq. 2.1).

    Parameters
    ----------
    y : (n,) array
        Response.
    X : (n, p) array or None
        Columns of the fixed effects; None means an intercept.  Include a column of ones for an intercept.
    Z : (n, q) array or None
        Columns of the random effects; None means a random intercept.
    groups : (n,) array
        Group of each row: integers, strings or any sortable labels, in any order.
    weights : (n,) array, optional
        Prior weights: the residual variance is sigma^2 / weights.
    offset : (n,) array, optional
        Known part of the mean.
    terms : sequence of RandomTerm, optional
        Instead of `Z` and `groups`: several random-effects terms, of one or more grouping factors, nested or crossed.
    structure : {"full", "diagonal"}
        Covariance of the random effects of a group: unrestricted or independent.
    exog_names, exog_re_names : sequences of str, optional
        Names of the columns of X and Z.
    group_name : str
        Name of the grouping factor.

    Raises
    ------
    LMMError
        For input that cannot be fitted; the message names the argument, the place and the remedy.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            from .support.words import missing_attribute

            missing_attribute(self, name, _after_fit(name))

    def __init__(
        self,
        y: ArrayLike,
        X: ArrayLike | None = None,
        Z: ArrayLike | None = None,
        groups: Any = None,
        *,
        terms: Sequence[RandomTerm] | None = None,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        structure: Literal["full", "diagonal"] = "full",
        exog_names: Sequence[str] | None = None,
        exog_re_names: Sequence[str] | None = None,
        group_name: str = "group",
    ) -> None:
        response = float_array(y, "y", 1)
        n = len(response)
        if n == 0:
            raise LMMError("y is empty: there are no observations")
        fixed = np.ones((n, 1)) if X is None else float_array(X, "X", 2)
        if terms is None:
            part = _one_term(n, Z, groups, structure, exog_re_names, group_name)
        elif Z is not None or groups is not None:
            raise LMMError("terms and Z, groups exclude each other: give the random effects in one way")
        else:
            part = random_part(terms_of_arrays(terms, n))
        self._setup(
            response,
            fixed,
            part,
            None if weights is None else float_array(weights, "weights", 1),
            None if offset is None else float_array(offset, "offset", 1),
            _names(exog_names, fixed.shape[1], "x", X is None, "exog_names"),
        )

    def _setup(
        self, y: Array, X: Array, part: RandomPart, weights: Array | None, offset: Array | None,
        exog_names: tuple[str, ...], spec: FormulaSpec | None = None, response_name: str = "y", n_dropped: int = 0,
        kept: NDArray[np.intp] | None = None,
    ) -> None:  # fmt: skip
        n = len(y)
        for name, values in (
            ("X", X),
            ("Z", part.parts[0]),
            ("groups", part.codes[0].codes),
            ("weights", weights),
            ("offset", offset),
        ):
            if values is not None and len(values) != n:
                raise LMMError(f"{name} has {len(values)} rows but y has {n}; give one row per observation")
        if weights is not None and not (weights > 0.0).all():
            row = int(np.flatnonzero(~(weights > 0.0))[0])
            raise LMMError(f"weights must be positive (first other: {weights[row]} at row {row}); remove such rows")
        self.endog = y
        self.exog = X
        self.random = part
        self.weights = weights
        self.offset = offset
        self.exog_names = exog_names
        self.response_name = response_name
        self.spec = spec
        self.n_dropped = n_dropped
        self.kept = kept
        self._check_groups(n)
        self.problem: Problem
        if len(part.codes) > 1:
            from .engines.crossed import problem as hierarchy

            factors = [
                hierarchy.Factor(part.columns_of(span), read.codes, read.n_slots, read.name, part.columns[span])
                for read, span in zip(part.codes, part.spans, strict=True)
            ]
            found = hierarchy.condition_factors(y, X, factors, weights, offset, part.structure)
            # what only one of the engines has is asked for where there is one factor
            self.problem = cast("Problem", found)
            groupings = [Grouping(read) for read in part.codes]
        else:
            self.problem, grouping = condition(
                y, X, part.Z, part.codes[0], weights, offset, part.structure, part.columns
            )
            groupings = [grouping]
        self.factors = tuple(
            Factor(grouping, span.start, span.stop) for grouping, span in zip(groupings, part.spans, strict=True)
        )
        """The grouping factors, that with most levels first."""

    @property
    def exog_re(self) -> Array:
        """Columns of the random effects of all terms (n, q)."""
        return self.random.Z

    @property
    def grouping(self) -> Grouping:
        """The grouping factor, that with most levels where there are several."""
        return self.factors[0].grouping

    def factor(self, name: str | None = None) -> Factor:
        """A grouping factor by name, by default that with most levels.

        Raises
        ------
        LMMError
            For an unknown name.
        """
        found = [f for f in self.factors if name in (None, f.grouping.name)]
        if not found:
            names = " or ".join(repr(f.grouping.name) for f in self.factors)
            raise LMMError(f"factor={name!r} is not a grouping factor: use {names}")
        return found[0]

    def factor_of(self, block: Block) -> Factor:
        """The grouping factor of a term."""
        return next(factor for factor in self.factors if factor.start <= block.start < factor.stop)

    @property
    def structure(self) -> CovarianceStructure:
        """Which elements of the factor of G are free."""
        return self.random.structure

    @property
    def exog_re_names(self) -> tuple[str, ...]:
        """Names of the columns of the random effects."""
        return self.random.columns

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the random-effects terms."""
        return self.random.term_names

    @property
    def library(self) -> str:
        """Library of the caller's data: "pandas", "polars", "pyarrow" or "dict", also for a model from arrays."""
        return "dict" if self.spec is None else self.spec.library

    def table(self, columns: Mapping[str, Any]) -> Any:
        """A table of results in the library of the caller's data; a dict of arrays for a model from arrays."""
        return native_frame(self.library, columns)

    def _check_groups(self, n: int) -> None:
        for read in self.random.codes:
            if read.n_slots == 1:
                raise LMMError(
                    f"the grouping factor {read.name!r} has one level: its variance cannot be estimated; "
                    "use ordinary regression or another factor"
                )
        if n <= self.exog.shape[1]:
            raise LMMError(f"there are {n} observations for {self.exog.shape[1]} fixed effects; use fewer columns in X")

    @property
    def nobs(self) -> int:
        """Number of observations."""
        return self.problem.n

    @property
    def df_resid(self) -> int:
        """Observations less estimable fixed effects."""
        return self.problem.n - self.problem.rank

    def fit(
        self,
        reml: bool = True,
        method: str | Callable[..., Any] = "newton",
        start: ArrayLike | None = None,
        options: dict[str, Any] | None = None,
    ) -> LMMResult:
        """Estimate by restricted (REML) or full maximum likelihood.

        Parameters
        ----------
        reml : bool
        method : str or callable
            "newton": compiled trust-region Newton with exact Hessian.  Any method of
            scipy.optimize.minimize by name, or a callable that it accepts.
        start : (k,) array, optional
            Theta to start from (lme4's order and scale); by default from moments of the data.
        options : dict, optional
            Options of the method, e.g. ``{"maxiter": 50}``.

        Returns
        -------
        LMMResult
            With ``converged=False`` and a message where the optimum could not be certified.

        Raises
        ------
        LMMError
            For an unknown method, a start of the wrong length, or a likelihood that has its supremum where the residual
            variance is zero.
        """
        from .result import LMMResult

        problem = self.problem
        criterion = problem.criterion()
        criterion.reml = bool(reml)
        if problem.saturated and not reml:
            refuse_unbounded(problem.outside)
        with one_blas_thread() if criterion.serial else nullcontext():
            optimum = optimize(
                criterion,
                self.structure,
                problem.levels,
                problem.n,
                problem.start(criterion) if start is None else self._conditioned_theta(start),
                method,
                options,
                problem.pilot() if start is None else None,
                "unasked" if start is not None else "nothing" if problem.balanced() else "search",
            )
            optimum = with_residual_variance(
                criterion, self.structure, problem.levels, problem.n, optimum, problem.saturated
            )
        return LMMResult(self, optimum, criterion.solution(), bool(reml))

    def fit_many(
        self, Y: Any, reml: bool = True, n_jobs: int | None = None, progress: bool | None = None, memory: float = 64.0
    ) -> BatchResult:
        """Fit many responses on this design.

        Every response is certified as a single fit is, and agrees with it; results do not depend on the
        number of threads, on how the responses are divided or on their order.

        Parameters
        ----------
        Y : (n_responses, nobs) array, or iterable of such blocks
            float32 or float64, any memory order, memory-mapped files too.  Only pieces of it are held at a time.
        reml : bool
        n_jobs : int, optional
            Threads; by default one per processor.
        progress : bool, optional
            Show a progress bar (needs tqdm); by default in interactive sessions.
        memory : float
            Megabytes that the pieces of Y under way may take together.

        Returns
        -------
        BatchResult
            Responses with values that are not finite or without variation are listed as ``invalid``.

        Raises
        ------
        LMMError
            For Y of another shape or type.
        """
        from .batch_result import fit_many

        return fit_many(self, Y, reml, n_jobs, progress, memory)

    def batch_design(self) -> BatchDesign:
        """What all responses of `fit_many` share; made once."""
        cached = self.__dict__.get("_cached_batch")
        if cached is None:
            from .estimation.many.one_factor import batch_design

            cached = self._cached_batch = batch_design(self)
        return cast("BatchDesign", cached)

    def refit(self, y: ArrayLike, reml: bool = True, **options: Any) -> LMMResult:
        """Fit another response on this design.

        Parameters
        ----------
        y : (nobs,) array
        reml : bool
        **options
            Passed to `fit`.

        Returns
        -------
        LMMResult
            Its model has `y` as the response.

        Raises
        ------
        LMMError
            As for a model made from `y`.
        """
        other = LinearMixedModel.__new__(LinearMixedModel)
        other._setup(
            float_array(y, "y", 1), self.exog, self.random, self.weights, self.offset, self.exog_names, self.spec,
            self.response_name, self.n_dropped, self.kept,
        )  # fmt: skip
        return other.fit(reml=reml, **options)

    def evaluate(self, theta: ArrayLike, reml: bool = True, order: int = 0) -> Evaluation:
        """The profiled criterion (-2 log-likelihood) at theta.

        Parameters
        ----------
        theta : (k,) array
            Lower triangle of Lambda by columns (diagonal only for independent effects), in natural units.
        reml : bool
        order : {0, 1, 2}
            Highest derivative to compute.

        Returns
        -------
        Evaluation
            With respect to theta.
        """
        problem = self.problem
        natural = self._natural_factor(theta)
        criterion = self._criterion()
        criterion.reml = bool(reml)
        back: Array = np.asarray(np.linalg.inv(problem.z_map), dtype=np.float64)
        factor = self.structure.canonical(back @ natural)
        value, _, _ = criterion.evaluate(self.structure.theta(factor), order)
        value += problem.offset(bool(reml))
        if order == 0:
            return Evaluation(value, None, None)
        gradient, hessian = natural_derivatives(
            self.structure, natural, back, criterion.solution()[3], criterion.curvature() if order > 1 else None
        )
        return Evaluation(value, gradient, hessian)

    def _criterion(self) -> ClusterCriterion:
        """A criterion of this thread's own: its work space serves one evaluation at a time."""
        local = self.__dict__.setdefault("_per_thread", threading.local())
        if not hasattr(local, "criterion"):
            local.criterion = self.problem.criterion()
        return cast("ClusterCriterion", local.criterion)

    def _natural_factor(self, theta: ArrayLike, name: str = "theta") -> Array:
        values = float_array(theta, name, 1)
        count = self.structure.n_parameters
        if len(values) != count:
            raise LMMError(f"{name} has {len(values)} elements, the model has {count} covariance parameters")
        if not np.isfinite(values).all():
            raise LMMError(f"{name} has values that are not finite; give {count} finite numbers")
        return self.structure.factor(values)

    def _conditioned_theta(self, theta: ArrayLike) -> Array:
        inner: Array = np.asarray(
            np.linalg.solve(self.problem.z_map, self._natural_factor(theta, "start")), dtype=np.float64
        )
        return self.structure.theta(self.structure.canonical(inner))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_per_thread", None)
        state.pop("_cached_batch", None)
        return state

    def __repr__(self) -> str:
        return (
            f"<LinearMixedModel: {self.nobs} observations, {_levels(self)}, "
            f"{self.exog.shape[1]} fixed and {self.structure.q} random effects>"
        )


_ESTIMATES = frozenset(
    {"sigma2", "theta", "criterion", "converged", "singular", "gradient_norm", "n_evaluations", "optimum", "reml"}
)
"""What a result has beside what its class defines."""


def _after_fit(name: str) -> str:
    """What to say of an attribute that a result has, where the model was not fitted."""
    from .result import LMMResult

    if name.startswith("_") or not (name in _ESTIMATES or hasattr(LMMResult, name)):
        return ""
    call = "(...)" if callable(getattr(LMMResult, name, None)) else ""
    return f"fit the model first, result = model.fit(), then result.{name}{call}"


def _one_term(
    n: int, Z: ArrayLike | None, groups: Any, structure: str, names: Sequence[str] | None, group_name: str
) -> RandomPart:
    if groups is None:
        raise LMMError("groups is missing: give the group of each row")
    if structure not in ("full", "diagonal"):
        raise LMMError(f"structure={structure!r} is unknown: use 'full' or 'diagonal'")
    random = np.ones((n, 1)) if Z is None else float_array(Z, "Z", 2)
    q = random.shape[1]
    if q == 0:
        raise LMMError("Z has no columns: give at least one random effect, or leave Z out for a random intercept")
    return RandomPart(
        (random,), (group_codes(groups, group_name),), (slice(0, q),), one_block(q, structure),
        _names(names, q, "z", Z is None, "exog_re_names"), (group_name,), (0,),
    )  # fmt: skip


def _levels(model: LinearMixedModel) -> str:
    return ", ".join(f"{len(f.grouping.labels)} levels of {f.grouping.name!r}" for f in model.factors)


@lru_cache(maxsize=64)
def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}{i}" for i in range(count))


def _names(given: Sequence[str] | None, count: int, stem: str, intercept: bool, argument: str) -> tuple[str, ...]:
    if given is None:
        return ("Intercept",) if intercept else _numbered(stem, count)
    if len(given) != count:
        raise LMMError(f"{argument} has {len(given)} names for {count} columns")
    return tuple(str(name) for name in given)


def lmm(
    formula: str,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    missing: Literal["drop", "raise"] = "drop",
) -> LinearMixedModel:
    """A linear mixed model from a formula and a table.

    Parameters
    ----------
    formula : str
        lme4's syntax: ``y ~ x + (x | g)``, ``(1 | g)``, ``(0 + x | g)``, ``(x || g)``, nested factors ``(1 | a/b)``,
        interactions ``(1 | a:b)``, crossed factors ``(1 | a) + (x | b)``; both sides may use formulaic's transforms.
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of arrays
    weights, offset : str or array, optional
        Column name or values: residual variance sigma^2 / weights, known part of the mean.
    missing : {"drop", "raise"}
        What to do with rows with missing values: leave out and count them, or refuse.

    Returns
    -------
    LinearMixedModel

    Raises
    ------
    LMMError
        For input that cannot be fitted; the message names the argument, the place and the remedy.
    """
    from .formula.specification import model_data

    found = model_data(formula, data, weights=weights, offset=offset, missing=missing)
    terms = [
        Term(t.name, Codes(t.name, t.codes.astype(np.int64, copy=False), 0, len(t.labels), t.labels), t.Z, t.columns,
             t.structure)
        for t in found.terms
    ]  # fmt: skip
    model = LinearMixedModel.__new__(LinearMixedModel)
    model._setup(
        found.y, found.X, random_part(terms), found.weights, found.offset, found.x_names, found.spec, found.response,
        found.n_dropped, found.kept,
    )  # fmt: skip
    return model

"""The model: arrays or a formula in, fits out.

As long as its texts: what users read of a model stands here, and hardly any code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from math import inf
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from .covariance.parameters import one_block
from .design.design import Design, Source
from .design.grouping import Codes, group_codes
from .design.ownership import seals_of
from .design.terms import RandomPart, RandomTerm, Term, no_random_part, random_part, terms_of_arrays
from .errors import LMMError
from .estimation.estimate import estimate
from .estimation.model import Model
from .support.arguments import checked
from .support.checks import float_array, plain_array
from .support.seals import own
from .support.threads import threads_for
from .support.types import Array
from .tables.alignment import index_of, shared_index

if TYPE_CHECKING:
    from .batch_result import BatchResult
    from .design.residual import ResidualPart
    from .formula.residual_arrays import Residual
    from .formula.specification import ModelData
    from .formula.variance_arrays import Variance
    from .result import LMMResult
    from .streams.plan import Plan

__all__ = ["LinearMixedModel", "arrays_design", "design_of", "lmm", "load", "mmrm"]


@checked
class LinearMixedModel(Model):
    """A Gaussian linear mixed model from arrays.

    y_i = X_i beta + Z_i b_i + e_i with b_i ~ N(0, G) and e_i ~ N(0, sigma^2 / weights), independent
    between groups i (Laird and Ware 1982, Biometrics 38, eq. 2.1).

    Parameters
    ----------
    y : (n,) array or None
        Response.  None for a design without one, for which parameters can be stated (`fastlmm_core.assume`).
    X : (n, p) array or None
        Columns of the fixed effects; None means an intercept.  Include a column of ones for an intercept.  A sparse
        matrix of scipy is written out.
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
    residual : Residual or Variance, optional
        How the residuals of a subject vary together, or how variances depend on covariates; without `Z`, `groups` and
        `terms` there are then no random effects.
    sigma : float, optional
        The residual standard deviation (of an observation of weight 1), where it is known; see `lmm`.
    design : Design, optional
        Instead of all the others but `y`: the design of a model made before (``model.design``).
    n_jobs : int, optional
        Threads for the passes over large data; by default one per processor.  Numbers do not depend on them.

    Arrays of more than 64 kB are not copied before their rows are needed again, for residuals, other responses or
    diagnostics; where they have been changed by then, an LMMError says so.

    Series and DataFrames of pandas have one index, that of the rows; results then come with it, and columns with the
    names that DataFrames give.

    Raises
    ------
    LMMError
        For input that cannot be fitted; the message names the argument, the place and the remedy.
    """

    fallback: tuple[LinearMixedModel, ...] = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            from .support.hints import missing_attribute

            missing_attribute(self, name, _after_fit(name))

    def __init__(
        self,
        y: ArrayLike | None,
        X: ArrayLike | None = None,
        Z: ArrayLike | None = None,
        groups: Any = None,
        *,
        terms: Sequence[RandomTerm] | Any = None,
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        structure: Literal["full", "diagonal"] = "full",
        exog_names: Sequence[str] | None = None,
        exog_re_names: Sequence[str] | None = None,
        group_name: str = "group",
        residual: Residual | Variance | Any = None,
        sigma: float | None = None,
        design: Design | None = None,
        n_jobs: int | None = None,
    ) -> None:
        if design is not None:
            if not (X is Z is groups is terms is weights is offset is sigma is None):
                raise LMMError("design holds X, Z, groups, terms, weights, offset and sigma: give either it or them")
            super().__init__(design, _response(_aligned(design, y)), n_jobs=n_jobs)
            self._seal_response()
            return
        response = _response(y)
        n = _count(X, Z, groups, terms) if response is None else len(response)
        index = _index_of_all(y, X, Z, groups, weights, offset, terms, residual) if "pandas" in sys.modules else None
        fixed = np.ones((n, 1)) if X is None else own(float_array(X, "X", 2))
        structured = _residual_of(residual, n)
        if structured is not None and Z is None and groups is None and terms is None:
            part = no_random_part(structured.subject, n)
        elif terms is None:
            shared = fixed if Z is X and X is not None else None
            part = _one_term(n, Z, groups, structure, exog_re_names, group_name, shared)
        elif Z is not None or groups is not None:
            raise LMMError("terms and Z, groups exclude each other: give the random effects in one way")
        else:
            part = random_part(terms_of_arrays(terms, n), y is None)
        made = Design(
            fixed,
            part,
            _names(exog_names, fixed.shape[1], "x", X, "exog_names"),
            None if weights is None else own(float_array(weights, "weights", 1)),
            None if offset is None else own(float_array(offset, "offset", 1)),
            index=index,
            residual=structured,
            sigma=sigma,
        )
        super().__init__(made, response, n_jobs=n_jobs)
        self._seals = seals_of(made, response)

    def _seal_response(self) -> None:
        """Watch over the response, where it is the caller's."""
        self._seals = seals_of(None, self._y)

    @classmethod
    def of(cls, design: Design, y: ArrayLike | None, given: bool = False) -> Self:
        """A model from a design and a response that nobody changes."""
        # the arguments of the constructor are nobody's here
        model = cls.__new__(cls)
        Model.__init__(model, design, _response(y), given)
        return model

    def fit(
        self,
        reml: bool = True,
        method: str | Callable[..., Any] = "newton",
        start: ArrayLike | None = None,
        options: dict[str, Any] | None = None,
        n_jobs: int | None = None,
    ) -> LMMResult:
        """Estimate by restricted (REML) or full maximum likelihood.

        Parameters
        ----------
        reml : bool
        method : str or callable
            "newton": compiled trust-region Newton with exact Hessian.  "iterative": for crossed factors too many
            for dense matrices, by conjugate gradients and random probes, with Monte Carlo errors that the message
            states; tests and random effects follow, conditional variances and profiles do not.  Any method of
            scipy.optimize.minimize by name, or a callable that it accepts.
        start : (k,) array, optional
            Theta to start from (lme4's order and scale); by default from moments of the data.  It is divided by a power
            of ten where that lowers the criterion.
        options : dict, optional
            Options of the method, e.g. ``{"maxiter": 50}``; of "iterative" ``probes`` (64), ``seed`` (0), ``maxiter``.
        n_jobs : int, optional
            Threads, which serve models of one grouping factor with thousands of groups, and crossed factors with
            hundreds of levels; by default one per processor.  Estimates are the same, to the last bit, for any number.

        Returns
        -------
        LMMResult
            With ``converged=False`` and a message where the optimum could not be certified.

        Raises
        ------
        LMMError
            For an unknown method, a start of the wrong length, n_jobs that is no number of threads, or a likelihood
            that has its supremum where the residual variance is zero.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit(reml=False)
        <LMMResult: ML criterion 1751.939344, certified>
        """
        with threads_for(n_jobs, self.problem.n):
            return self._fit(reml, method, start, options)

    def _fit(
        self, reml: bool, method: str | Callable[..., Any], start: ArrayLike | None, options: dict[str, Any] | None
    ) -> LMMResult:
        """`fit`, its arguments being checked."""
        kind = _kind()
        found = estimate(kind, self, reml, method, start, options)
        tried: list[str] = []
        for other in self.fallback:
            if found.converged:
                break
            assert found.model.residual is not None
            tried.append(f"{found.model.residual.term}: {found.optimum.message}")
            found = estimate(kind, other, reml, method, None, options)
            message = f"{found.optimum.message}, after {'; '.join(tried)}"
            found = replace(found, optimum=found.optimum._replace(message=message))
        return found

    def fit_many(
        self,
        Y: Any,
        reml: bool = True,
        n_jobs: int | None = None,
        progress: bool | None = None,
        memory: float = 64.0,
        missing: Literal["invalid", "drop", "raise"] = "invalid",
        *,
        weights: Any = None,
        offset: Any = None,
        covariates: Mapping[str, Any] | None = None,
        min_obs: int = 0,
        out: Any = None,
        resume: Any = None,
        client: Any = None,
    ) -> Any:
        """Fit many responses on this design.

        Every response is certified as a single fit is, and agrees with it; results do not depend on the
        number of threads, on how the responses are divided or on their order.

        Parameters
        ----------
        Y : (n_responses, nobs) array, table, or iterable of such blocks
            Of an array each row is a response; float32 or float64, any memory order, memory-mapped files too.  Of a
            table (pandas, polars, pyarrow, dict) each **column** is a response and rows are observations, as in the
            data: rows of pandas are aligned by their index, others are the rows used or all rows of the data.  The
            names of the columns become the labels of the responses.  Arrays of h5py, zarr, dask, xarray (with
            the coordinate of its first dimension as labels) and scipy.sparse, and AnnData by its X (a response per
            variable), are read by slices too.  Only pieces are held at a time.
        reml : bool
        n_jobs : int, optional
            Threads; by default one per processor.
        progress : bool, optional
            Show a progress bar (needs tqdm); by default in interactive sessions.
        memory : float
            Megabytes that the pieces of Y under way may take together.
        missing : {"invalid", "drop", "raise"}
            What a NaN in Y is: a response that cannot be fitted, an observation that is not there, or an error.  With
            "drop" each response is fitted on the others; responses that miss the same ones share a design and are
            fitted together.
        weights, offset : arrays shaped like Y or iterables of blocks, optional
            For each observation of each response, in place of those of the model.  Blocks, of these or of Y with
            missing="drop", are put together.
        covariates : mapping of str to arrays shaped like Y or iterables of blocks, optional
            Further columns of X, by name, with values of each response's own.  ``"gm:age"`` is the product of the
            values given with the column age of X.  With missing="drop" a NaN in any of these is a missing observation.
        min_obs : int
            Responses with fewer observations are not fitted.
        out : mapping of str to array-like, optional
            Arrays that take the estimates of each block when it is finished: numpy arrays, memory maps, data sets of
            h5py or zarr with a row for each response; some of params, bse, df, sigma2, criterion, theta, covariance,
            converged, singular, nobs and n_groups.
        resume : BatchResult, MaskedBatch or EachResult, optional
            What an interrupt or an error has left of an earlier run of the same responses with the same options: the
            exception has it as its attribute ``batch``.  The responses that it has not reached are fitted.
        client : distributed.Client, optional
            For an array of Dask: whose workers fit its chunks, on `n_jobs` threads each (by default one), so that no
            response comes here; by default the current client, or the threads of this process where there is none.

        Returns
        -------
        BatchResult
            Responses with values that are missing or not finite, or without variation, are listed as ``invalid``.
        MaskedBatch
            With missing="drop": the same estimates and tests, with ``nobs`` and ``n_groups`` of each response.
        EachResult
            With weights, offset, covariates or min_obs: the same of problems with designs of their own.  Where there
            are several grouping factors each is fitted by itself, in some milliseconds.

        Raises
        ------
        LMMError
            For Y of another shape or type, or with rows that are not those of the data; for weights that are not
            positive, and for unknown columns in products.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> import numpy as np
        >>> model = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy"))
        >>> responses = np.random.default_rng(1).normal(size=(3, 180))
        >>> model.fit_many(responses).params.shape
        (3, 2)
        """
        from .batch_result import BatchResult
        from .estimation.many.pieces import fit_many, refuse_missing
        from .estimation.many.workers import fit_by_workers, worker_client
        from .result import LMMResult

        if missing not in ("invalid", "drop", "raise"):
            raise LMMError(f"missing={missing!r} is unknown: use 'invalid', 'drop' or 'raise'")
        own_values: Any = weights is not None or offset is not None or covariates
        # what is shared by masks takes any model
        own_values = own_values or (min_obs and (missing != "drop" or len(self.factors) == 1))
        if own_values or missing == "drop":
            self.needs_unknown_variance(
                "fit_many() with weights, offset, covariates, min_obs or missing='drop'", "fit the responses one by one"
            )
        if client is not None and (own_values or missing == "drop"):
            raise LMMError("client is for complete responses on one design: leave it out, or the other options")
        if own_values or missing == "drop":
            from .inference.many.values import Run, fit_values, fit_with_holes

            run = Run(n_jobs, progress, memory, out, resume)
        if own_values:
            own = {"weights": weights, "offset": offset, "covariates": covariates or {}}
            return fit_values(self, LMMResult, bool(reml), Y, own, missing, min_obs, run)
        if missing == "drop":

            def empty(own: Model, count: int, responses: Any) -> BatchResult:
                return BatchResult(own, LMMResult, bool(reml), count, responses)

            return fit_with_holes(self, empty, LMMResult, bool(reml), Y, run, min_obs)
        kind = partial(BatchResult, self.fittable(), LMMResult, bool(reml))
        workers = worker_client(Y, client)
        if workers is not None:
            found = fit_by_workers(kind, Y, workers, n_jobs, progress, out, resume)
        else:
            found = fit_many(kind, Y, n_jobs, progress, memory, out, resume)
        if missing == "raise":
            refuse_missing(found)
        return found

    def refit(
        self,
        y: ArrayLike,
        reml: bool = True,
        method: str | Callable[..., Any] = "newton",
        start: ArrayLike | None = None,
        options: dict[str, Any] | None = None,
    ) -> LMMResult:
        """Fit another response on this design.

        Parameters
        ----------
        y : (nobs,) array
            Of the rows used, or of all rows of the data; a Series is aligned by its index.
        reml : bool
        method, start, options
            As for `fit`.

        Returns
        -------
        LMMResult
            Its model has `y` as the response.

        Raises
        ------
        LMMError
            As for a model made from `y`.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> data = flc.datasets.load("sleepstudy")
        >>> model = flc.lmm("Reaction ~ Days + (Days | Subject)", data)
        >>> model.refit(data.Reaction / 1000).params.round(3)
        Intercept    0.251
        Days         0.010
        dtype: float64
        """
        design = self.design
        model = self.of(design, _aligned(design, y))
        model._seal_response()
        return model._fit(reml, method, start, options)

    def update(self, formula: str = ". ~ .", data: Any = None, **options: Any) -> LinearMixedModel:
        """The model of a changed formula, or of other data, all else as it was.

        Parameters
        ----------
        formula : str
            Dots stand for the parts of the old formula: ``". ~ . + z"``, ``"log(.) ~ ."``, ``". ~ . - (x | g) +
            (1 | g)"``, ``"~ .:z"``; as for R's ``update``.
        data : table, optional
            By default the same.
        **options
            Of `lmm`, instead of those of this model: ``weights``, ``offset``, ``residual``, ``variance``, ``fallback``,
            ``missing``.

        Returns
        -------
        LinearMixedModel

        Raises
        ------
        LMMError
            For a model from arrays, or from a pickle or a file without `data`, and as `lmm`.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> slopes = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy"))
        >>> slopes.update(". ~ . - (Days | Subject) + (1 | Subject)").design.spec.formula
        'Reaction ~ Days + (1 | Subject)'
        """
        from .formula.rewriting import updated

        origin = self.design.origin(data)
        assert self.design.spec is not None
        return lmm(updated(self.design.spec.formula, formula), origin.table, **{**origin.options, **options})

    def __repr__(self) -> str:
        return (
            f"<LinearMixedModel: {self.nobs} observations, {_levels(self)}, "
            f"{len(self.exog_names)} fixed and {self.structure.q} random effects>"
        )


@cache
def _kind() -> type[LMMResult]:
    """What fits are, loaded with the first of them."""
    from .result import LMMResult

    return LMMResult


def _aligned(design: Design, y: ArrayLike | None) -> ArrayLike | None:
    """A response of the rows of a design, from one of these or of all rows of the caller's table."""
    plain = y is None or (type(y) is np.ndarray and y.shape == (len(design.exog),))
    return y if plain else design.caller_rows.values(y, "y")


def _response(y: ArrayLike | None) -> Array | None:
    if y is None:
        return None
    if isinstance(y, str):
        raise LMMError(f"y must hold numbers, not the text {y!r}; formulas are for lmm(formula, data)")
    response = float_array(y, "y", 1)
    if len(response) == 0:
        raise LMMError("y is empty: there are no observations")
    return own(response)


def _index_of_all(*given: Any) -> Any:
    """The index that y, X, Z, groups, weights, offset and what is given in terms and residual have in common."""
    for values in given:
        if values is not None and type(values) is not np.ndarray:
            break
    else:
        return None
    terms, residual = given[-2:]
    named = list(zip(("y", "X", "Z", "groups", "weights", "offset"), given[:-2], strict=True))
    for i, term in enumerate(terms if isinstance(terms, Sequence) else ()):
        named += [(f"terms[{i}].{part}", getattr(term, part, None)) for part in ("Z", "groups")]
    named += [(f"residual.{part}", getattr(residual, part, None)) for part in ("subject", "time", "by")]
    return shared_index((name, index_of(values)) for name, values in named)


def _count(X: Any, Z: Any, groups: Any, terms: Any) -> int:
    """Rows of a design without a response."""
    first = next((values for values in (X, Z, groups) if values is not None), None)
    if first is None and terms is not None:
        first = next((term.groups for term in terms if isinstance(term, RandomTerm)), None)
    if first is None:
        raise LMMError("y, X, Z and groups are missing: give the response or, for a design without one, the others")
    return len(plain_array(first, "X"))


def _residual_of(residual: Any, n: int) -> ResidualPart | None:
    """The residual part that a caller gave as `Residual` or `Variance`."""
    if residual is None:
        return None
    from .formula.residual_arrays import Residual
    from .formula.variance_arrays import Variance

    if isinstance(residual, Variance):
        return residual.bind(None, n)
    if not isinstance(residual, Residual):
        raise LMMError(
            f"residual is of type {type(residual).__name__!r}; give Residual(name, subject, time), or use lmm() for a "
            "structure written as text"
        )
    return residual.bind(n)


def _after_fit(name: str) -> str:
    """What to say of an attribute that a result has, where the model was not fitted."""
    from .result import LMMResult

    if name.startswith("_") or not (name in LMMResult.__dataclass_fields__ or hasattr(LMMResult, name)):
        return ""
    call = "(...)" if callable(getattr(LMMResult, name, None)) else ""
    return f"fit the model first, result = model.fit(), then result.{name}{call}"


def _one_term(
    n: int,
    Z: ArrayLike | None,
    groups: Any,
    structure: str,
    names: Sequence[str] | None,
    group_name: str,
    shared: Array | None,
) -> RandomPart:
    """The random part from arrays; `shared`: X, where Z is the same array, as the sums over rows are to know."""
    if groups is None:
        third = "" if Z is None else " as groups=: the third argument is Z, the columns of the random effects"
        raise LMMError(f"groups is missing: give the group of each row{third}")
    if structure not in ("full", "diagonal"):
        raise LMMError(f"structure={structure!r} is unknown: use 'full' or 'diagonal'")
    random = shared if shared is not None else np.ones((n, 1)) if Z is None else own(float_array(Z, "Z", 2))
    q = random.shape[1]
    if q == 0:
        raise LMMError("Z has no columns: give at least one random effect, or leave Z out for a random intercept")
    return RandomPart(
        (random,), (group_codes(groups, group_name),), (slice(0, q),), one_block(q, structure),
        _names(names, q, "z", Z, "exog_re_names"), (group_name,), (0,),
    )  # fmt: skip


def _levels(model: LinearMixedModel) -> str:
    return ", ".join(f"{f.grouping.m} levels of {f.grouping.name!r}" for f in model.factors)


@lru_cache(maxsize=64)
def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}{i}" for i in range(count))


def _names(given: Sequence[str] | None, count: int, stem: str, columns: Any, argument: str) -> tuple[str, ...]:
    """Names of columns: those given, or those of a DataFrame, or numbers."""
    if given is None:
        if columns is None:
            return ("Intercept",)
        given = getattr(columns, "columns", None)
        if given is None:
            return _numbered(stem, count)
    if len(given) != count:
        raise LMMError(f"{argument} has {len(given)} names for {count} columns")
    names = tuple(str(name) for name in given)
    if len(set(names)) < count:
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise LMMError(f"{argument} has {twice!r} twice: coefficients are asked for by name; give each column its own")
    return names


@checked
def lmm(
    formula: str | Plan,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    residual: str | None = None,
    variance: str | None = None,
    sigma: float | None = None,
    fallback: Sequence[str] | None = None,
    missing: Literal["drop", "raise", "pad"] = "drop",
    source: Any = None,
    client: Any = None,
    buckets: int | None = None,
    n_jobs: int | None = None,
) -> LinearMixedModel:
    """A linear mixed model from a formula and a table.

    Parameters
    ----------
    formula : str or Plan
        lme4's syntax: ``y ~ x + (x | g)``, ``(1 | g)``, ``(0 + x | g)``, ``(x || g)``, nested factors ``(1 | a/b)``,
        interactions ``(1 | a:b)``, crossed factors ``(1 | a) + (x | b)``; both sides may use formulaic's transforms.
        A plan of `fastlmm_core.plan`, where `data` are the sums that it has made.
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table, dict of arrays, Scan or CrossProducts
        Or a polars.LazyFrame or a relation of DuckDB, of which the columns in use are read, or any object with
        ``__arrow_c_stream__``.  Rows of a `fastlmm_core.scan` are read in pieces and not held; a data frame of Dask
        or Spark is summed by its workers.
    weights, offset : str or array, optional
        Column name or values: residual variance sigma^2 / weights, known part of the mean.
    residual : str, optional
        How the residuals of a subject vary together: ``"us(visit | id)"``, ``"ar1(week | id, by=arm)"``; independent by
        default.  Over visits id, diag, us, cs, csh, ar1, ar1h, ad, adh, toep, toeph, arma, ``fa(visit | id, q=1)``; for
        several responses ``us@cs(response, visit | id)``; over coordinates car1, sp_exp, sp_gau, sp_power, matern,
        matern52, ratio and spher, with ``nugget=True`` where rows have variance of their own.  With it a formula
        without bars is a complete model.
    variance : str, optional
        Standard deviations of the residuals by covariates: a formula for their logarithms, ``"~ 0 + arm"``, or a
        function of a column, ``"power(x)"``, ``"exp(x, by=arm)"``, constpower or constprop.
    sigma : float, optional
        The residual standard deviation of an observation of weight 1, where it is known and not estimated.  For a
        meta-analysis of estimates with sampling variances v: ``weights=1/v, sigma=1``; a study may then have one row.
        No sum of a plan depends on it.
    fallback : sequence of str, optional
        Names of structures to take for that of `residual`, in this order, where a fit is not certified.
    missing : {"drop", "raise", "pad"}
        What to do with rows with missing values: leave out and count them, or refuse.  With "pad" they are left out,
        and fitted values, residuals and the like have NaN in their place, as with R's ``na.exclude``.
    source : optional
        For a plan and its sums: where the rows are, if they should be needed again (see `fastlmm_core.scan`).
    client : distributed.Client, optional
        For a data frame of Dask: whose workers sum its partitions; by default the current client's, or the threads of
        this process where there is none.
    buckets : int, optional
        For a data frame of Dask, and one grouping factor or several that are nested in each other: the sums of the
        groups stay with the workers of the client, in so many buckets, and each step of the search sends parameters
        there.  For more groups than this process has room for; what is about each group, such as random effects, is
        then not given.
    n_jobs : int, optional
        Threads for the passes over large data; by default one per processor.  Numbers do not depend on them.

    Returns
    -------
    LinearMixedModel

    Raises
    ------
    LMMError
        For input that cannot be fitted; the message names the argument, the place and the remedy.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit().params.round(2)
    Intercept    251.41
    Days          10.47
    dtype: float64
    """
    # told by their modules, which are then loaded: tables do without them
    if source is not None or type(data).__module__.startswith((f"{__package__}.streams.", "dask", "pyspark")):
        structured = {"residual": residual, "variance": variance, "fallback": fallback}
        for argument, value in structured.items():
            if value is not None:
                raise LMMError(
                    f"{argument} needs the rows, which a scan does not hold; fit a table in memory, of some hundred "
                    "groups where all are too many: power() takes that fit, or a model that assume() states"
                )
        with threads_for(n_jobs, inf):
            return _streamed(formula, data, (weights, offset, missing), source, client, buckets, sigma)
    if buckets is not None:
        raise LMMError("buckets is for a data frame of Dask: give one as data, or leave it out")
    if client is not None:
        raise LMMError("client is for a data frame of Dask: give one as data, or leave it out")
    if not isinstance(formula, str):
        raise LMMError("to a plan belong the sums that it has made, or a scan: lmm(plan, total), lmm(plan, scan(data))")
    from .formula.specification import model_data
    from .tables.lazy import readable

    data = readable(data)
    found = model_data(
        formula, data, weights=weights, offset=offset, residual=residual, variance=variance,
        missing="drop" if missing == "pad" else missing,
    )  # fmt: skip
    options = {
        "weights": weights, "offset": offset, "residual": residual, "variance": variance, "sigma": sigma,
        "fallback": fallback, "missing": missing,
    }  # fmt: skip
    with threads_for(n_jobs, 0 if found.y is None else len(found.y)):
        model = LinearMixedModel.of(design_of(found, Source(data, options)), found.y)
    if fallback:
        if residual is None:
            raise LMMError("fallback names structures for that of residual=: give it too")
        from .formula.residual import other_structures

        model.fallback = tuple(
            lmm(formula, data, weights=weights, offset=offset, residual=text, variance=variance, missing=missing)
            for text in other_structures(residual, fallback)
        )
    return model


def _streamed(
    formula: Any, data: Any, of_plan: tuple[Any, Any, str], source: Any, client: Any, buckets: Any, sigma: float | None
) -> LinearMixedModel:  # fmt: skip
    """`lmm` of rows that are not held; `of_plan`: weights, offset and missing, which belong to a plan."""
    from .streams.cross_products import CrossProducts
    from .streams.dask import is_dask, plan_of_dask, reduce_dask
    from .streams.fitting import condition_plan, condition_source
    from .streams.plan import Plan
    from .streams.source import Scan, scan
    from .streams.spark import is_spark, plan_of_spark, reduce_spark

    weights, offset, missing = of_plan
    if is_dask(data):
        if isinstance(formula, str):
            formula, weights, offset = plan_of_dask(formula, data, weights, offset, missing, {}, client), None, None
        if buckets is not None:
            from .streams.buckets import condition_buckets

            found = condition_buckets(formula, data, client, buckets, sigma)
            return LinearMixedModel.of_sums(found.design, found.problem)
        data = reduce_dask(formula, data, client)
    elif client is not None or buckets is not None:
        name = "client" if buckets is None else "buckets"
        raise LMMError(f"{name} is for a data frame of Dask: give one as data, or leave it out")
    elif is_spark(data):
        if isinstance(formula, str):
            formula, weights, offset = plan_of_spark(formula, data, weights, offset, missing, {}), None, None
        data = reduce_spark(formula, data)
    if isinstance(formula, str):
        if source is not None or not isinstance(data, Scan):
            raise LMMError("source and sums belong to a plan: lmm(plan, total, source=...); to a formula, a scan")
        found = condition_source(formula, data, weights, offset, missing, sigma)
    else:
        if not isinstance(formula, Plan):
            raise LMMError(f"formula is of type {type(formula).__name__!r}; give text, or what plan() returns")
        if isinstance(data, Scan) and source is None:
            source, data = data, None
        elif not isinstance(data, CrossProducts):
            raise LMMError(
                f"data is of type {type(data).__name__!r}; to a plan belong the sums that its reduce() has made, or "
                "merge() of several"
            )
        if weights is not None or offset is not None:
            raise LMMError("weights and offset belong to the plan: give them to plan()")
        found = condition_plan(formula, data, None if source is None else scan(source), sigma=sigma)
    return LinearMixedModel.of_sums(found.design, found.problem)


@checked
def mmrm(
    formula: str,
    data: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    variance: str | None = None,
    fallback: Sequence[str] | None = None,
    missing: Literal["drop", "raise", "pad"] = "drop",
) -> LinearMixedModel:
    """A mixed model for repeated measures: R's mmrm formulas word for word.

    The structure of the residuals stands among the fixed effects, ``"y ~ arm * visit + us(visit | id)"``; with
    parameters of their own for groups of subjects ``us(visit | arm / id)``.  This is `lmm` with that term as
    ``residual=``.

    Parameters
    ----------
    formula : str
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of arrays
    weights, offset, variance, fallback, missing
        See `lmm`.

    Returns
    -------
    LinearMixedModel

    Raises
    ------
    LMMError
        For a formula without a structure or with several, and as `lmm`.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("fev")
    >>> fit = flc.mmrm("FEV1 ~ RACE + SEX + ARMCD * AVISIT + us(AVISIT | USUBJID)", data).fit()
    >>> round(fit.criterion, 4)
    3386.4499
    """
    from .formula.residual import split_mmrm

    rest, residual = split_mmrm(formula)
    return lmm(
        rest, data, weights=weights, offset=offset, residual=residual, variance=variance, fallback=fallback,
        missing=missing,
    )  # fmt: skip


@checked
def load(path: str | PathLike[str]) -> LMMResult:
    """The result that `LMMResult.save` has written to a file.

    The rows are conditioned anew and the criterion is evaluated at the estimates; nothing is searched for.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    LMMResult
        With all that the one saved could do.

    Raises
    ------
    LMMError
        For a file that is not there, is no such file or is damaged, or of a later version of the format.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> fit = flc.lmm("Reaction ~ Days + (1 | Subject)", flc.datasets.load("sleepstudy")).fit()
    >>> with TemporaryDirectory() as folder:
    ...     fit.save(Path(folder) / "sleep.flc")
    ...     again = flc.load(Path(folder) / "sleep.flc")
    >>> bool(again.criterion == fit.criterion)
    True
    """
    from .archive.results import read
    from .result import LMMResult

    return read(path, LinearMixedModel, LMMResult)


def arrays_design(
    n: int,
    X: ArrayLike | None,
    Z: ArrayLike | None,
    groups: Any,
    weights: ArrayLike | None,
    offset: ArrayLike | None,
    structure: str,
    *,
    exog_names: Sequence[str] | None,
    exog_re_names: Sequence[str] | None,
    group_name: str,
) -> Design:
    """The design that arrays of n rows make, with one grouping factor; see `LinearMixedModel`.

    It is not yet checked (see `Design.check`).
    """
    fixed = np.ones((n, 1)) if X is None else own(float_array(X, "X", 2))
    shared = fixed if Z is X and X is not None else None
    return Design(
        fixed,
        _one_term(n, Z, groups, structure, exog_re_names, group_name, shared),
        _names(exog_names, fixed.shape[1], "x", X, "exog_names"),
        None if weights is None else own(float_array(weights, "weights", 1)),
        None if offset is None else own(float_array(offset, "offset", 1)),
    )


def design_of(found: ModelData, source: Source, given: bool = False) -> Design:
    """The design that a formula and a table make; `given`: parameters will be stated for it."""
    terms = [
        Term(t.name, Codes(t.name, t.codes.astype(np.int64, copy=False), 0, len(t.labels), t.labels), t.Z, t.columns,
             t.structure)
        for t in found.terms
    ]  # fmt: skip
    if terms:
        random = random_part(terms, given)
    else:
        assert found.residual is not None
        random = no_random_part(found.residual.subject, len(found.X))
    return Design(
        found.X, random, found.x_names, found.weights, found.offset, found.spec, found.response,
        found.n_dropped, found.kept, index=found.index, source=source, residual=found.residual,
        padded=source.options.get("missing") == "pad", sigma=source.options.get("sigma"),
    )  # fmt: skip

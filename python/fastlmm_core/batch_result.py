"""Many responses on one design: the batch engine's policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .covariance.elements import element_names, sd_and_cor
from .engines.starts import many_minima, other_starts
from .errors import LMMError
from .estimation.many.one_factor import effects_design
from .estimation.optimize import SINGULAR
from .inference.wald import coefficient_df
from .support.blas_threads import one_blas_thread
from .support.memory import blas_callers
from .support.progress import progress_bar
from .support.threads import in_threads, thread_count

if TYPE_CHECKING:
    from .inference.many import BatchTest
    from .methods import Ddf
    from .model import LinearMixedModel
    from .result import LMMResult

__all__ = ["BatchResult", "fit_drawn", "fit_many"]

Array = NDArray[np.float64]

CHUNK_BYTES = 2**23
"""Size of the pieces in which responses are handed to threads."""

WORTH_A_THREAD = 2**16
"""Numbers in the responses that are worth a thread, and in the last pieces."""

ROUND = 2
"""Pieces of a stream that are held for each thread."""

ONE_BY_ONE, WORTH_ONE = 64, 8
"""Responses in a piece, and worth a thread, where each takes its own time: several grouping factors."""

BOUNDARY = 2


class BatchResult:
    """Estimates for many responses; every array has a leading axis over responses.

    Attributes
    ----------
    params, bse : (n_responses, p) arrays
        Fixed effects and standard errors; NaN for dropped columns and for responses that could not be fitted.
    sigma2, criterion, llf, gradient_norm : (n_responses,) arrays
    converged, singular : (n_responses,) bool arrays
    n_evaluations : (n_responses,) int array
    invalid : int array
        Responses with values that are not finite, or without variation: converged is False, estimates are NaN.
    """

    def __init__(self, model: LinearMixedModel, reml: bool, count: int, responses: Any) -> None:
        p, n_par = model.exog.shape[1], model.structure.n_parameters
        self.model = model
        self.reml = reml
        self._responses = responses
        self._theta_o = np.empty((count, n_par))
        self.params = np.empty((count, p))
        self.bse = np.empty((count, p))
        self.sigma2 = np.empty(count)
        self.criterion = np.empty(count)
        self.gradient_norm = np.empty(count)
        self._status = np.empty(count, dtype=np.intc)
        self.n_evaluations = np.empty(count, dtype=np.intc)
        # Satterthwaite's degrees of freedom; which responses the single-fit path fitted
        self._df = np.empty((count, p))
        self._alone = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.sigma2)

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each optimum is certified."""
        return np.asarray(self._status > 0)

    @property
    def singular(self) -> NDArray[np.bool_]:
        """Whether each estimate lies on the boundary."""
        return np.asarray(self._status == BOUNDARY)

    @property
    def invalid(self) -> NDArray[np.intp]:
        """Responses that could not be fitted."""
        return np.flatnonzero(self._status < 0)

    @property
    def llf(self) -> Array:
        """Maximised log-likelihoods."""
        return -0.5 * self.criterion

    @property
    def tvalues(self) -> Array:
        """Estimates divided by standard errors (n_responses, p)."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.params / self.bse)

    @property
    def df(self) -> Array:
        """Satterthwaite's degrees of freedom of the t tests that each fixed effect is zero (n_responses, p).

        `tidy` and `test` offer others.
        """
        from .inference.many import df

        return df(self)

    @property
    def pvalues(self) -> Array:
        """Two-sided p-values of the t tests that each fixed effect is zero (n_responses, p), with Satterthwaite's df.

        `tidy` and `test` offer others.
        """
        from .inference.many import pvalues

        return pvalues(self)

    def tidy(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite") -> Any:
        """One row per response and coefficient.

        Parameters
        ----------
        level : float
            Of the confidence limits.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            Degrees of freedom; Kenward-Roger with adjusted standard errors and the expected information.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            response (its position), term, estimate, std_error, df, statistic, p_value, conf_low, conf_high.

        Raises
        ------
        LMMError
            For a level outside (0, 1), another `ddf`, or Kenward-Roger after fits by ML.
        """
        from .inference.many import tidy_columns

        return self.model.table(tidy_columns(self, level, ddf))

    def test(self, hypothesis: Any, rhs: Any = None, *, ddf: Ddf = "satterthwaite") -> BatchTest:
        """Test linear hypotheses on the fixed effects for every response.

        Parameters
        ----------
        hypothesis, rhs
            See `LMMResult.test`.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}

        Returns
        -------
        BatchTest

        Raises
        ------
        LMMError
            For hypotheses that cannot be tested, or Satterthwaite's formula for other than single coefficients where
            the responses were given as a stream and are gone.
        """
        from .inference.many import test

        return test(self, hypothesis, rhs, ddf)

    @cached_property
    def _factor(self) -> Array:
        structure, inner = self.model.structure, self._lambda_o
        problem = self.model.problem
        out = structure.natural(problem.z_map, inner)
        edge = self.singular
        negligible = SINGULAR * np.sqrt(problem.levels / problem.n)
        out[edge] = structure.natural(problem.z_map, inner[edge], negligible)
        return out

    @property
    def _covariance(self) -> Array:
        return np.asarray(self.sigma2[:, None, None] * (self._factor @ self._factor.transpose(0, 2, 1)))

    @property
    def theta(self) -> Array:
        """Relative covariance parameters in natural units (n_responses, k)."""
        rows, columns = self.model.structure.positions
        return np.asarray(self._factor[:, rows, columns])

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrices of the random effects by term (n_responses, q, q)."""
        whole = self._covariance
        return {
            name: whole[:, block.start : block.stop, block.start : block.stop]
            for name, block in zip(self.model.term_names, self.model.structure.blocks, strict=True)
        }

    def random_effects(self, which: Any = None) -> Any:
        """BLUPs of the random effects, computed on request from the responses.

        Parameters
        ----------
        which : indices or slice, optional
            Responses wanted; by default all.

        Returns
        -------
        (n_wanted, n_groups, q) array
            NaN where a response could not be fitted.  A dict by factor where there are several.

        Raises
        ------
        LMMError
            Where the responses were given as a stream and are gone.
        """
        if self._responses is None:
            raise LMMError("the responses were given as a stream and are not kept: fit an array to have BLUPs")
        chosen = np.arange(len(self))[slice(None) if which is None else which]
        factors = self.model.factors
        design = effects_design(self.model)
        out = [np.empty((len(chosen), len(f.grouping.labels), f.stop - f.start)) for f in factors]
        size = max(1, CHUNK_BYTES // (8 * self.model.nobs * self.model.structure.q))
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            y = np.asarray(self._responses[part], dtype=np.float64)
            found = design.effects(y, self.params[part], self._lambda_o[part])
            for whole, piece in zip(out, found, strict=True):
                whole[begin : begin + size] = piece
        if len(factors) == 1:
            return out[0]
        return {f.grouping.name: values for f, values in zip(factors, out, strict=True)}

    @property
    def _lambda_o(self) -> Array:
        structure = self.model.structure
        inner = np.zeros((len(self), structure.q, structure.q))
        rows, columns = structure.positions
        inner[:, rows, columns] = self._theta_o
        return inner

    def __getitem__(self, i: int) -> LMMResult:
        """The full result of one response.

        Raises
        ------
        IndexError
            For a position outside the batch.
        LMMError
            Where the responses were given as a stream and are gone, or the response could not be fitted.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"response {i} of {len(self)}")
        if self._responses is None:
            raise LMMError("the responses were given as a stream and are not kept; fit this one with model.refit(y)")
        return self.model.refit(np.asarray(self._responses[i], dtype=float), reml=self.reml)

    def to_frame(self) -> Any:
        """One row per response: estimates, standard errors, variance parameters, criterion and flags.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
        """
        names = self.model.exog_names
        columns: dict[str, Any] = {name: self.params[:, j] for j, name in enumerate(names)}
        columns |= {f"std_error_{name}": self.bse[:, j] for j, name in enumerate(names)}
        elements = self.model.random.elements
        values = np.column_stack([sd_and_cor(elements, self._covariance), np.sqrt(self.sigma2)])
        columns |= {name: values[:, k] for k, name in enumerate(element_names(elements))}
        columns |= {
            "criterion": self.criterion,
            "converged": self.converged,
            "singular": self.singular,
        }
        return self.model.table(columns)

    def __repr__(self) -> str:
        kind = "REML" if self.reml else "ML"
        return (
            f"<BatchResult: {len(self)} {kind} fits, {int(self.converged.sum())} certified, "
            f"{int(self.singular.sum())} singular, {len(self.invalid)} not fitted>"
        )


def _blocks(Y: Any, n: int) -> tuple[Iterator[Array], int | None, Any]:
    """Blocks of responses, their number if it is known, and the whole if it can be indexed."""
    if hasattr(Y, "ndim") and hasattr(Y, "shape"):
        if Y.ndim == 1 and Y.shape[0] == n:
            Y = Y[None, :]
        if Y.ndim != 2 or Y.shape[1] != n:
            raise LMMError(f"Y must have the shape (n_responses, {n}), not {tuple(Y.shape)}; transpose it if needed")
        if np.asarray(Y[:0]).dtype.kind not in "fiub":
            raise LMMError(f"Y must hold numbers, not {np.asarray(Y[:0]).dtype}")
        return iter([Y]), int(Y.shape[0]), Y
    if not isinstance(Y, Iterable):
        raise LMMError("Y must be an array of shape (n_responses, n_obs) or an iterable of such blocks")

    def checked() -> Iterator[Array]:
        for block in Y:
            array = np.atleast_2d(np.asarray(block))
            if array.ndim != 2 or array.shape[1] != n:
                raise LMMError(f"a block of Y has the shape {array.shape}; every block needs {n} columns")
            if array.dtype.kind not in "fiub":
                raise LMMError(f"a block of Y must hold numbers, not {array.dtype}")
            yield array

    return checked(), None, None


def _chunks(blocks: Iterator[Array], size: int, smallest: int, jobs: int) -> Iterator[Array]:
    """Pieces of at most `size` rows; smaller ones towards the end of a block, so that all threads end together."""
    for block in blocks:
        begin = 0
        while begin < len(block):
            share = (len(block) - begin) // (2 * jobs) // 8 * 8
            length = min(size, max(share, smallest)) if jobs > 1 else size
            yield block[begin : begin + length]
            begin += length


def fit_many(
    model: LinearMixedModel,
    Y: Any,
    reml: bool = True,
    n_jobs: int | None = None,
    progress: bool | None = None,
    memory: float = 64.0,
) -> BatchResult:
    """See `LinearMixedModel.fit_many`."""
    jobs = thread_count(n_jobs)
    if not memory > 0.0:
        raise LMMError(f"memory={memory} must be a positive number of megabytes")
    blocks, count, whole = _blocks(Y, model.nobs)
    size = int(max(8, min(CHUNK_BYTES, memory * 2**20 / (2 * jobs)) // (8 * model.nobs) // 8 * 8))
    smallest = max(8, WORTH_A_THREAD // model.nobs // 8 * 8)
    if len(model.factors) > 1:
        size, smallest = min(size, ONE_BY_ONE), WORTH_ONE
    if count is not None:
        jobs = min(jobs, max(1, count // smallest))
    return _fit(model, _chunks(blocks, size, smallest, jobs), count, whole, reml, jobs, progress)


def fit_drawn(
    model: LinearMixedModel,
    blocks: Iterator[Callable[[], Array]],
    count: int,
    whole: Any,
    size: int,
    reml: bool,
    n_jobs: int | None,
    progress: bool | None,
) -> BatchResult:
    """Fit responses that are drawn, in blocks of `size`, on the thread that fits them; `whole` draws them again."""
    jobs = min(thread_count(n_jobs), max(1, -(-count // size)))
    return _fit(model, blocks, count, whole, reml, jobs, progress, size)


def _rounds(tasks: Iterator[Any], size: int) -> Iterator[Iterator[Any]]:
    """Some tasks at a time, each let go once it is taken."""
    while some := deque(islice(tasks, size)):
        yield (some.popleft() for _ in range(len(some)))


def _fit(
    model: LinearMixedModel,
    blocks: Iterator[Any],
    count: int | None,
    whole: Any,
    reml: bool,
    jobs: int,
    progress: bool | None,
    size: int = 0,
) -> BatchResult:
    """Fit blocks (arrays, or functions that return `size` responses) of in all `count` responses (None: unknown)."""
    # where no row tells the residual variance by itself, each response may have an optimum or none
    shared = None if model.problem.saturated else model.batch_design()
    pieces: list[BatchResult] = []
    if count is not None:
        pieces.append(BatchResult(model, reml, count, whole))

    def run(block: Any, into: BatchResult, first: int) -> int:
        dense = np.ascontiguousarray(block() if callable(block) else block, dtype=np.float64)
        if shared is None:
            into._status[first : first + len(dense)] = into.n_evaluations[first : first + len(dense)] = 0
        else:
            _lanes(shared, dense, into, first)
        _second_look(model, dense, into, first)
        return len(dense)

    def tasks() -> Iterator[tuple[Any, BatchResult, int]]:
        at = 0
        for block in blocks:
            if count is None:
                # results of a stream grow with it
                pieces.append(BatchResult(model, reml, len(block), None))
                yield block, pieces[-1], 0
            else:
                yield block, pieces[0], at
                at += size if callable(block) else len(block)

    bar = progress_bar(progress, count)
    try:
        # our threads would wait for each other in BLAS
        several = len(model.factors) > 1
        callers = blas_callers(jobs) if several else jobs
        with one_blas_thread() if several else nullcontext():
            # the blocks of a stream are drawn here, some at a time
            for some in _rounds(tasks(), ROUND * jobs) if count is None else (tasks(),):
                in_threads(run, some, callers, None if bar is None else bar.update)
    finally:
        if bar is not None:
            bar.close()
    return pieces[0] if count is not None else _joined(model, reml, pieces)


def _lanes(shared: kernels.BatchDesign, Y: Array, into: BatchResult, first: int, start: Array | None = None) -> None:
    constant = into.model.problem.constant(into.reml)
    shared.fit(
        Y, first, into.reml, constant, start, into._theta_o, into.params, into.bse, into.sigma2, into.criterion,
        into.gradient_norm, into._status, into.n_evaluations, into._df,
    )  # fmt: skip


def _second_look(model: LinearMixedModel, Y: Array, into: BatchResult, first: int) -> None:
    """Other starts where an optimum lies on the boundary; the single-fit path where the lanes did not certify."""
    part = slice(first, first + len(Y))
    status = into._status[part]
    problem = model.problem
    edge = np.flatnonzero(status > 0 if many_minima(model.structure, problem.levels) else status == BOUNDARY)
    if len(edge):
        chosen = np.ascontiguousarray(Y[edge])
        for start in other_starts(model.structure, problem.levels, problem.n):
            other = BatchResult(model, into.reml, len(edge), None)
            _lanes(model.batch_design(), chosen, other, 0, start)
            into.n_evaluations[first + edge] += other.n_evaluations
            better = np.flatnonzero((other._status > 0) & (other.criterion < into.criterion[first + edge] - 1e-9))
            if len(better):
                for name in _FIELDS:
                    getattr(into, name)[first + edge[better]] = getattr(other, name)[better]
    for i in np.flatnonzero(status == 0):
        _single(model, Y[i], into, first + int(i))
    if problem.rank < into.params.shape[1]:
        dropped = np.setdiff1d(np.arange(into.params.shape[1]), problem.kept)
        into.params[part, dropped] = into.bse[part, dropped] = into._df[part, dropped] = np.nan
    lost = first + np.flatnonzero(status < 0)
    if len(lost):
        for name in ("_theta_o", "params", "bse", "sigma2", "criterion", "gradient_norm", "_df"):
            getattr(into, name)[lost] = np.nan


_FIELDS = ("_theta_o", "params", "bse", "sigma2", "criterion", "gradient_norm", "_status", "_df")


def _single(model: LinearMixedModel, y: Array, into: BatchResult, at: int) -> None:
    """Fit one response by the single-fit path."""
    try:
        result = model.refit(y, reml=into.reml)
    except LMMError:
        into._status[at] = -2
        return
    problem = model.problem
    # theta of the fit in the coordinates of this design
    inner: Array = np.asarray(np.linalg.solve(problem.z_map, result._factor), dtype=np.float64)
    into._theta_o[at] = model.structure.theta(model.structure.canonical(inner))
    into.params[at] = result._params
    into.bse[at] = np.sqrt(np.diag(result._cov))
    into.sigma2[at] = result.sigma2
    into.criterion[at] = result.criterion
    into.gradient_norm[at] = result.gradient_norm
    into._df[at] = coefficient_df(result)
    into._alone[at] = True
    into._status[at] = (BOUNDARY if result.singular else 1) if result.converged else 0
    into.n_evaluations[at] += result.n_evaluations


def _joined(model: LinearMixedModel, reml: bool, pieces: list[BatchResult]) -> BatchResult:
    out = BatchResult(model, reml, sum(map(len, pieces)), None)
    for name in (*_FIELDS, "_alone", "n_evaluations"):
        if pieces:
            np.concatenate([getattr(piece, name) for piece in pieces], out=getattr(out, name))
    return out

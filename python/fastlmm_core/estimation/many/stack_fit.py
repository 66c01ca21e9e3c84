"""Fits of many problems that have designs of their own: in lanes, and one by one what these leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...covariance.directions import inverse_hessian
from ...errors import LMMError
from ...kernels.records.stacks import StackResults
from ...support.blas_threads import one_blas_thread
from ...support.progress import progress_bar
from ...support.threads import in_threads, thread_count
from ...support.types import Array
from ..estimate import estimate
from ..fit import Fit
from ..information import Moments, moments
from ..optimum import SINGULAR
from .batch_fit import BOUNDARY
from .patterns import Observed, moments_of_sums
from .progress import UNREACHED, Sink
from .stack import Problems, same_columns

__all__ = [
    "FIELDS", "NOT_REACHED", "Look", "StackFit", "estimates_of", "fit_stack", "joined_stacks", "leave_unreached",
    "part_of_stack",
]  # fmt: skip


Look = Callable[[int, int], Mapping[int, str]]

PIECE, PIECE_ALONE = 256, 8
"""Problems that a thread takes at a time, and where each is fitted by itself."""

WORTH_A_PIECE = 2**12
"""Rows that are worth a task of their own."""

NOT_REACHED = "the run was broken off before it was fitted"
"""Why there are no estimates of what a run has not come to."""


FIELDS = (
    "theta_o", "params", "bse", "satterthwaite", "sigma2", "criterion", "gradient_norm", "z_maps", "status",
    "n_evaluations", "rank", "n_groups", "nobs", "by_lanes",
)  # fmt: skip
"""Arrays with an axis over problems, in the order of `StackResults`."""


class StackFit:
    """Estimates for many problems; every array has a leading axis over problems.

    Parameters
    ----------
    stack : Problems
    kind : type
        Of the record of one of the fits.
    reml : bool

    Attributes
    ----------
    params, bse : (count, p) arrays
        NaN for dropped columns and for problems that could not be fitted.
    satterthwaite : (count, p) array
        Degrees of freedom of the coefficients.
    sigma2, criterion, gradient_norm : (count,) arrays
    status : (count,) int array
        2: certified, on the boundary; 1: certified; 0: not certified; below 0: could not be fitted.
    n_evaluations, rank, n_groups, nobs : (count,) int arrays
        Evaluations of the criterion, columns of X kept, groups and rows.
    reasons : dict
        Why problems could not be fitted, by position.
    """

    def __init__(self, stack: Problems, kind: type[Fit], reml: bool) -> None:
        count, p, structure = len(stack), len(stack.design.exog_names), stack.design.structure
        self.stack, self.kind, self.reml = stack, kind, reml
        self.theta_o = np.empty((count, structure.n_parameters))
        self.params, self.bse, self.satterthwaite = (np.empty((count, p)) for _ in range(3))
        self.sigma2, self.criterion, self.gradient_norm = (np.empty(count) for _ in range(3))
        self.z_maps = np.empty((count, structure.q, structure.q))
        self.status, self.n_evaluations, self.rank, self.n_groups, self.nobs, self.by_lanes = (
            np.zeros(count, dtype=np.intc) for _ in range(6)
        )
        self.reasons: dict[int, str] = {}
        self._alone: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.sigma2)

    @property
    def results(self) -> StackResults:
        """The arrays that the kernels write to."""
        return StackResults(*(getattr(self, name) for name in FIELDS))

    def refuse(self, i: int, reason: str) -> None:
        """Give no estimates of a problem."""
        for array in (self.theta_o, self.params, self.bse, self.satterthwaite, self.z_maps):
            array[i] = np.nan
        self.sigma2[i] = self.criterion[i] = self.gradient_norm[i] = np.nan
        self.status[i], self.rank[i], self.by_lanes[i], self.reasons[i] = -2, 0, 0, reason

    def refuse_changes(self) -> None:
        """Refuse to go on with rows that the caller has changed since they were fitted.

        Raises
        ------
        LMMError
            Naming the argument.
        """
        seals = self.stack.seals
        if seals is not None:
            seals.refuse("fit_many" if self.stack.one == "response" else "fit_each")

    def fit_alone(self, i: int) -> None:
        """Fit a problem by itself, where the lanes could not."""
        evaluations = int(self.n_evaluations[i])
        self.refuse(i, "")
        try:
            found = estimate(Fit, self.stack.model(i), self.reml)
        except LMMError as error:
            self.reasons[i] = str(error)
            return
        del self.reasons[i]
        problem = found.model.problem
        self.params[i] = found.beta
        self.bse[i] = np.sqrt(np.diag(found.cov))
        self.satterthwaite[i] = moments(found, "satterthwaite").coefficient_df(problem)
        self.sigma2[i], self.criterion[i], self.gradient_norm[i] = found.sigma2, found.criterion, found.gradient_norm
        self.status[i] = (BOUNDARY if found.singular else 1) if found.converged else 0
        self.n_evaluations[i] = evaluations + found.n_evaluations
        self.rank[i], self.n_groups[i], self.nobs[i] = problem.rank, found.model.grouping.m, found.model.nobs
        self._alone[i] = found.relative_factor

    def one(self, i: int) -> Fit:
        """The full record of one problem.

        Raises
        ------
        LMMError
            For a problem that could not be fitted: why.
        """
        self.refuse_changes()
        if i in self.reasons:
            raise LMMError(f"problem {self.stack.labels[i]} could not be fitted: {self.reasons[i]}")
        return estimate(self.kind, self.stack.model(i), self.reml)

    @cached_property
    def relative_factor(self) -> Array:
        """Lambda in natural units (count, q, q)."""
        structure = self.stack.design.structure
        inner = structure.factors(self.theta_o)
        out = np.full_like(inner, np.nan)
        for edge in (False, True):
            some = (self.by_lanes == 1) & ((self.status == BOUNDARY) == edge)
            negligible = np.full(structure.q, SINGULAR) if edge else None
            out[some] = structure.natural(self.z_maps[some], inner[some], negligible)
        for i, factor in self._alone.items():
            out[i] = factor
        return out

    def observed(self) -> Observed:
        """The observed information of all problems that the lanes have fitted, NaN elsewhere."""
        _, _, shift, hess = self.contrasts(np.eye(1, self.params.shape[1]))
        inverse, done = np.full_like(hess, np.nan), self.by_lanes == 1
        inverse[done] = inverse_hessian(self.stack.design.structure, self.theta_o[done], hess[done])
        return Observed(shift, inverse)

    def moments(self, part: NDArray[np.intp], information: str, observed: Observed | None) -> tuple[Array, Moments]:
        """Kenward and Roger's moments of problems that the lanes have fitted by REML.

        Parameters
        ----------
        part : (n,) int array
            These problems, in order.
        information : {"auto", "expected", "observed"}
        observed : Observed or None
            Of all problems, for "observed".

        Returns
        -------
        root : (n, p, r) array
            Phi = sigma^2 root root' before it is adjusted.
        Moments
        """
        self.refuse_changes()
        structure, first, last = self.stack.design.structure, int(part[0]), int(part[-1]) + 1
        theta = self.theta_o[part]
        assert self.stack.kernel is not None
        done = self.stack.kernel.moments(first, last, self.theta_o, self.by_lanes)
        x_map, *sums = (array[part - first] for array in done)
        own = None if observed is None else Observed(observed.shift[part], observed.inverse[part])
        edge = (self.status[part] == BOUNDARY) & (information == "auto")
        nu = np.asarray(self.nobs[part] - self.rank[part], dtype=np.float64)
        found = moments_of_sums(structure, tuple(sums), nu, structure.factors(theta), edge, own)
        return x_map @ np.swapaxes(found.half, 1, 2), found

    def contrasts(self, L: Array) -> tuple[Array, Array, Array, Array]:
        """What Satterthwaite's formula takes for rows L beta of the problems that the lanes have fitted.

        Parameters
        ----------
        L : (m, p) array

        Returns
        -------
        covariance : (count, m, m) array
            L (X'V^-1X)^-1 L' relative to sigma^2; NaN, as the others, for problems that were fitted by themselves.
        slope : (count, k, m, m) array
            Its derivative in theta.
        shift : (count, k) array
            -d r^2 / r^2.
        hess : (count, k, k) array
        """
        self.refuse_changes()
        count, k, m = len(self), self.theta_o.shape[1], len(L)
        shapes = ((count, m, m), (count, k, m, m), (count, k), (count, k, k))
        arrays = tuple(np.full(shape, np.nan) for shape in shapes)
        assert len(arrays) == len(shapes)
        L = np.ascontiguousarray(L)
        kernel = self.stack.kernel
        if kernel is None:
            return arrays  # type: ignore[return-value]

        def run(first: int, last: int) -> int:
            kernel.contrasts(first, last, self.reml, self.theta_o, self.by_lanes, L, arrays)  # type: ignore[arg-type]
            return last - first

        in_threads(run, *_pieces(self.stack, None))
        return arrays  # type: ignore[return-value]


F = TypeVar("F", bound=StackFit)


def estimates_of(fits: F, part: slice) -> F:
    """The estimates of neighbouring problems, without their rows."""
    out = copy(fits)
    out.__dict__.pop("relative_factor", None)
    for name in FIELDS:
        setattr(out, name, getattr(fits, name)[part])
    out._alone = {i - part.start: factor for i, factor in fits._alone.items() if part.start <= i < part.stop}
    return out


def part_of_stack(fits: F, chosen: NDArray[np.intp]) -> F:
    """Fits of some of the problems, in this order; nothing is fitted again."""
    fits.refuse_changes()
    out = type(fits)(fits.stack.some(chosen), fits.kind, fits.reml)
    for name in FIELDS:
        setattr(out, name, np.ascontiguousarray(getattr(fits, name)[chosen]))
    for place, i in enumerate(chosen.tolist()):
        if i in fits.reasons:
            out.reasons[place] = fits.reasons[i]
        if i in fits._alone:
            out._alone[place] = fits._alone[i]
    return out


def joined_stacks(results: Sequence[F]) -> F:
    """Fits of several results, in this order.

    Raises
    ------
    LMMError
        For no result, or results of different columns, kinds or criteria.
    """
    if not results:
        raise LMMError("concat needs at least one result")
    first = results[0]
    for k, other in enumerate(results):
        if isinstance(other, StackFit):
            other.refuse_changes()
        if not isinstance(other, StackFit) or type(other.stack) is not type(first.stack):
            raise LMMError(f"results[{k}] is a {type(other).__name__} of another kind; give results of one function")
        if other.reml != first.reml:
            raise LMMError(f"results[{k}] is by {'REML' if other.reml else 'ML'} and results[0] is not; fit both alike")
        if not same_columns(first.stack.design, other.stack.design):
            raise LMMError(f"results[{k}] has other columns or random effects than results[0]")
    out = type(first)(first.stack.joined([one.stack for one in results]), first.kind, first.reml)
    for name in FIELDS:
        setattr(out, name, np.concatenate([getattr(one, name) for one in results]))
    begin = 0
    for one in results:
        out.reasons |= {begin + i: reason for i, reason in one.reasons.items()}
        out._alone |= {begin + i: factor for i, factor in one._alone.items()}
        begin += len(one)
    return out


def _pieces(problems: Problems, n_jobs: int | None) -> tuple[Iterator[tuple[int, int]], int]:
    """First and last of the problems of each task, smaller ones towards the end; and threads."""
    count, asked = len(problems), thread_count(n_jobs)
    size = smallest = PIECE_ALONE
    if problems.kernel is not None:
        worth = WORTH_A_PIECE * count // max(problems.n_rows, 1)
        size, smallest = PIECE, min(PIECE, max(8, worth // 8 * 8))
    jobs = min(asked, max(1, -(-count // smallest)))

    def pieces() -> Iterator[tuple[int, int]]:
        at = 0
        while at < count:
            # all threads end together
            share = (count - at) // (2 * jobs) // 8 * 8
            end = min(at + (min(size, max(share, smallest)) if jobs > 1 else size), count)
            yield at, end
            at = end

    return pieces(), jobs


def fit_stack(
    empty: StackFit,
    n_jobs: int | None,
    progress: bool | None,
    refused: Mapping[int, str] = MappingProxyType({}),
    sink: Sink | None = None,
    resume: StackFit | None = None,
    look: Look | None = None,
) -> None:
    """Fit all problems of a stack.

    What breaks the run off carries the stack as its attribute `batch`, without the problems that were not reached.

    Parameters
    ----------
    empty : StackFit
        Filled.
    n_jobs, progress
        As for `fit_many`.
    refused : mapping of int to str
        Problems that are not to be fitted, and why.
    sink : Sink or None
        Takes the estimates of each piece when it is finished.
    resume : StackFit or None
        What an earlier run of the same problems has left.
    look : callable, optional
        Told the first and last of some problems, raises where their values cannot be, and returns which of them are not
        to be fitted, and why.  Not asked where the kernels, which sum all values, tell that all of them are finite.

    Raises
    ------
    LMMError
        For what is left of other problems, and as `look`.
    """
    count = len(empty)
    reached = np.zeros(count, dtype=bool)
    if resume is not None:
        reached = _taken(empty, resume)
    results, lines = empty.results, empty.stack.lines()

    def run(first: int, last: int) -> int:
        kernel, sound = empty.stack.kernel, 0
        if kernel is not None:
            sound = kernel.fit(first, last, empty.reml, results, lines)
        out = {i: refused[i] for i in refused.keys() & range(first, last)}
        if look is not None and sound < last - first:
            out = {**look(first, last), **out}
        for i in (first + np.flatnonzero(empty.status[first:last] == 0)).tolist():
            if i not in out:
                empty.fit_alone(i)
        for i, reason in out.items():
            empty.refuse(i, reason)
        if sink is not None:
            sink.write(estimates_of(empty, slice(first, last)), first)
        reached[first:last] = True
        return last - first

    pieces, jobs = _pieces(empty.stack, n_jobs)
    bar = progress_bar(progress, count)
    try:
        # single fits of several threads would wait for each other in BLAS
        with one_blas_thread(jobs > 1 and empty.stack.kernel is None):
            tasks = (piece for piece in pieces if not reached[slice(*piece)].all())
            in_threads(run, tasks, jobs, None if bar is None else bar.update)
    except BaseException as error:
        leave_unreached(empty, np.flatnonzero(~reached))
        error.batch = empty  # type: ignore[attr-defined]
        raise
    finally:
        if bar is not None:
            bar.close()


def leave_unreached(fits: StackFit, which: NDArray[np.intp]) -> None:
    """Mark problems that a run which was broken off has not come to."""
    for i in which.tolist():
        fits.refuse(i, NOT_REACHED)
        fits._alone.pop(i, None)
        fits.status[i], fits.n_evaluations[i] = UNREACHED, 0


def _taken(empty: StackFit, left: StackFit) -> NDArray[np.bool_]:
    """Take what an earlier run has left; which problems it has reached."""
    alike = isinstance(left, StackFit) and len(left) == len(empty) and left.reml == empty.reml
    if not alike or not same_columns(left.stack.design, empty.stack.design):
        raise LMMError(
            f"resume is of other columns, another criterion or number of {empty.stack.one}s than this run; give what "
            "the error of a run with the same arguments carries, error.batch"
        )
    if not empty.stack.same(left.stack):
        raise LMMError(
            f"resume is of {empty.stack.one}s with other values or labels than those of this run: give both the same "
            "data, rows in the same order"
        )
    reached = np.asarray(left.status != UNREACHED)
    for name in FIELDS:
        getattr(empty, name)[:] = getattr(left, name)
    empty.status[~reached] = 0
    empty.reasons |= {i: reason for i, reason in left.reasons.items() if reached[i]}
    empty._alone |= {i: factor for i, factor in left._alone.items() if reached[i]}
    return reached

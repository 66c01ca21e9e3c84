"""Many problems, each with a design of its own: their rows, one after the other, and fits of what the lanes leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...covariance.directions import inverse_hessian
from ...covariance.parameters import CovarianceStructure
from ...design.design import Design
from ...design.grouping import Codes, Grouping
from ...design.ownership import Seals
from ...design.terms import RandomPart
from ...engines.protocol import CAREFUL, EASY, HARD
from ...errors import LMMError
from ...formula.coding import FixedTerm, fixed_terms
from ...kernels.records import StackedRows, StackResults, StackSearch
from ...kernels.stacks import ProblemStack
from ...support.blas_threads import one_blas_thread
from ...support.progress import progress_bar
from ...support.threads import in_threads, thread_count
from ...support.types import Array
from ..fit import Fit, estimate
from ..information import Moments, moments
from ..model import Model
from ..optimize import SINGULAR
from ..search import DESCENTS, LOWEST_POINTS, NARROWED, SPREAD, spread_points
from .batch_fit import BOUNDARY
from .flat_rows import FlatRows
from .patterns import Observed, moments_of_sums
from .progress import UNREACHED, Sink

__all__ = [
    "FIELDS", "Problems", "Stack", "StackFit", "estimates_of", "fit_stack", "joined_stacks", "leave_unreached",
    "numbered", "part_of_stack", "same_values", "search_of",
]  # fmt: skip


PIECE, PIECE_ALONE = 256, 8
"""Problems that a thread takes at a time, and where each is fitted by itself."""

WORTH_A_PIECE = 2**12
"""Rows that are worth a task of their own."""

NOT_REACHED = "the run was broken off before it was fitted"
"""Why there are no estimates of what a run has not come to."""


class Problems(Protocol):
    """Many problems: the columns that they share, and each by itself.

    Attributes
    ----------
    one : str
        What one of them is called in tables.
    n_rows : int
        Of all problems together.
    seals : Seals or None
        Of arrays that are the caller's, who may change them.
    """

    one: str
    design: Design
    labels: NDArray[Any]
    kind: type[Model]
    n_rows: int
    seals: Seals | None

    @property
    def kernel(self) -> ProblemStack | None:
        """What fits them in lanes; None where each is fitted by itself."""

    def __len__(self) -> int: ...

    def model(self, i: int) -> Model:
        """The model of one problem."""

    def flat(self, chosen: NDArray[np.intp]) -> FlatRows:
        """The rows of some of the problems."""

    def some(self, chosen: NDArray[np.intp]) -> Problems:
        """Some of the problems, in this order."""

    def joined(self, stacks: Sequence[Any]) -> Problems:
        """The problems of several stacks of this kind, one after the other."""

    def same(self, other: Any) -> bool:
        """Whether another stack holds the same problems: rows, values and labels."""

    def with_random(self, random: RandomPart) -> Problems:
        """The same problems with other random effects of the same groups."""

    def terms(self) -> tuple[FixedTerm, ...]:
        """Terms of the fixed part, in the order of the columns."""

    def whole(self) -> Model:
        """A model of the columns that all problems have, of which the names and linear functions are taken."""


class Stack:
    """Rows of many problems that have the same columns.

    Parameters
    ----------
    design : Design
        Of all rows.  The lanes fit problems with one grouping factor; others are fitted by themselves.
    y : (n,) array
    each : Grouping
        Which problem each row belongs to.
    kind : type
        Of the models of single problems.

    Attributes
    ----------
    order : (n,) int array or None
        Rows sorted by problem; None where they are.
    start : (n_problems + 1,) int array
        First of the sorted rows of each problem.
    labels : (n_problems,) array
        Of the problems, sorted.
    """

    one = "problem"

    def __init__(self, design: Design, y: Array, each: Grouping, kind: type[Model]) -> None:
        self.design, self.y, self.each, self.kind = design, y, each, kind
        self.labels, self.n_rows = each.labels, len(y)
        self.seals: Seals | None = None
        self.order: NDArray[np.intp] | None = None
        if each.runs is not None and len(each.runs) == each.m + 1:
            self.start = each.runs
        else:
            self.order = np.argsort(each.index, kind="stable")
            self.start = np.append(0, np.cumsum(np.bincount(each.index, minlength=each.m))).astype(np.int64)
        self.kernel: ProblemStack | None = None
        if len(design.random.codes) > 1:
            return
        read = design.random.codes[0]
        self.kernel = ProblemStack(
            StackedRows(
                X=self._sorted(design.exog),
                y=self._sorted(y),
                Z=self._sorted(design.exog_re),
                start=self.start,
                codes=np.ascontiguousarray(self._sorted(read.codes), dtype=np.int64),
                base=read.base,
                n_slots=read.n_slots,
                weights=None if design.weights is None else np.ascontiguousarray(self._sorted(design.weights)),
                offset=None if design.offset is None else np.ascontiguousarray(self._sorted(design.offset)),
            ),
            search_of(design.structure),
        )

    def _sorted(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.order is None else values[self.order]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, i: int) -> NDArray[np.intp]:
        """The caller's rows of a problem."""
        rows = np.arange(self.start[i], self.start[i + 1])
        return rows if self.order is None else self.order[rows]

    def flat(self, chosen: NDArray[np.intp]) -> FlatRows:
        """The rows of some of the problems."""
        design, rows = self.design, self._rows_of(chosen)
        counts = np.diff(self.start)[chosen]
        read = design.random.codes[0]
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        given = [None if values is None else values[rows] for values in (design.weights, design.offset)]
        return FlatRows.sorted_by_group(
            (design.exog[rows], design.exog_re[rows], self.y[rows]), (given[0], given[1]),
            (np.repeat(np.arange(len(chosen)), counts), np.asarray(read.codes[rows] - read.base)), (rows, place),
            (int(counts.max(initial=0)), len(chosen)),
        )  # fmt: skip

    def _rows_of(self, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
        """The caller's rows of some of the problems, one after the other."""
        return np.concatenate([np.zeros(0, dtype=np.intp), *(self.rows(i) for i in chosen.tolist())])

    def some(self, chosen: NDArray[np.intp]) -> Stack:
        """Some of the problems, in this order."""
        rows, counts = self._rows_of(chosen), np.diff(self.start)[chosen]
        each = numbered(np.repeat(np.arange(len(chosen)), counts), self.labels[chosen])
        return Stack(self.design.rows(rows), self.y[rows], each, self.kind)

    def joined(self, stacks: Sequence[Any]) -> Stack:
        """The problems of several stacks of the same columns, one after the other."""
        designs, y = [one.design for one in stacks], np.concatenate([one.y for one in stacks])
        given = {}
        for what in ("weights", "offset"):
            found = [getattr(design, what) for design in designs]
            missing = 1.0 if what == "weights" else 0.0
            filled = [np.full(len(d.exog), missing) if v is None else v for d, v in zip(designs, found, strict=True)]
            given[what] = None if all(values is None for values in found) else np.concatenate(filled)
        each = [[f.grouping for f in d.factors] for d in designs]
        labels = {
            parts[0].name: np.concatenate([one.labels[one.index] for one in parts]) for parts in zip(*each, strict=True)
        }
        whole = self.design.other(
            np.concatenate([d.exog for d in designs]), np.concatenate([d.exog_re for d in designs]), labels,
            given["weights"], given["offset"],
        )  # fmt: skip
        first = np.cumsum([0, *(len(one) for one in stacks)])
        index = np.concatenate([one.each.index + begin for one, begin in zip(stacks, first, strict=False)])
        return Stack(whole, y, numbered(index, np.concatenate([one.labels for one in stacks])), self.kind)

    def same(self, other: Any) -> bool:
        """Whether another stack holds the same problems, with their rows in the same order."""
        if not isinstance(other, Stack) or not same_columns(self.design, other.design):
            return False
        one, two = self.design, other.design
        if [read.name for read in one.random.codes] != [read.name for read in two.random.codes]:
            return False
        alike = all(a.agrees(b) for a, b in zip(one.random.codes, two.random.codes, strict=True))
        return alike and all(
            same_values(a, b)
            for a, b in (
                (self.y, other.y), (self.each.index, other.each.index), (self.labels, other.labels),
                (one.exog, two.exog), (one.exog_re, two.exog_re), (one.weights, two.weights), (one.offset, two.offset),
            )
        )  # fmt: skip

    def with_random(self, random: RandomPart) -> Stack:
        """The same problems with other random effects of the same groups."""
        out = Stack(self.design.with_random(random), self.y, self.each, self.kind)
        out.seals = self.seals
        return out

    def terms(self) -> tuple[FixedTerm, ...]:
        """Terms of the fixed part."""
        return fixed_terms(self.design)

    @cached_property
    def _whole(self) -> Model:
        return self.kind.of(self.design, None).fittable()

    def whole(self) -> Model:
        """A model of all rows."""
        return self._whole

    def with_response(self, y: Array) -> Stack:
        """The same problems with other responses (n,)."""
        return Stack(self.design, y, self.each, self.kind)

    def model(self, i: int) -> Model:
        """The model of one problem.

        Raises
        ------
        LMMError
            For a problem that cannot be fitted.
        """
        rows, design = self.rows(i), self.design
        labels = {}
        for read in design.random.codes:
            codes = read.codes[rows]
            labels[read.name] = codes if read.slot_labels is None else read.slot_labels[codes - read.base]
        weights, offset = (None if v is None else v[rows] for v in (design.weights, design.offset))
        own = design.other(design.exog[rows], design.exog_re[rows], labels, weights, offset)
        return self.kind.of(own, self.y[rows])


def numbered(index: NDArray[np.intp], labels: NDArray[Any]) -> Grouping:
    """Problems by number, all of which have rows; labels need not differ."""
    return Codes("each", index, 0, len(labels), labels).count()


def search_of(structure: CovarianceStructure) -> StackSearch:
    """How the optimum of each problem is looked for; other minima by the screens of `estimation.search`."""
    screens = [spread_points(structure.blocks, effort, 1.0) for effort in (EASY, CAREFUL, HARD)]
    return StackSearch(
        blocks=[(block.start, block.stop, block.correlated) for block in structure.blocks],
        rows=structure.positions[0],
        columns=structure.positions[1],
        structure=np.ascontiguousarray(structure.free, dtype=np.intc),
        points=[np.ascontiguousarray(screen.thetas) for screen in screens],
        neighbours=[np.ascontiguousarray(screen.neighbours) for screen in screens],
        starts=(DESCENTS[HARD], LOWEST_POINTS[HARD], SPREAD[HARD], NARROWED),
    )


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


def same_columns(one: Design, other: Design) -> bool:
    """Whether two designs have columns and random effects of the same names."""
    names = (one.exog_names == other.exog_names, one.exog_re_names == other.exog_re_names)
    return all(names) and one.structure.blocks == other.structure.blocks


def same_values(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Whether both are arrays with the same values, missing ones at the same places, or neither is there."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" and other.dtype.kind == "f")


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
    checks: Sequence[Callable[[], None]] = (),
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
    checks : sequence of callables
        Made before the problems, by the same threads; they refuse the whole run by raising.

    Raises
    ------
    LMMError
        For what is left of other problems, and as the checks do.
    """
    count = len(empty)
    reached = np.zeros(count, dtype=bool)
    if resume is not None:
        reached = _taken(empty, resume)
    results = empty.results

    def check(of_rows: Callable[[], None]) -> int:
        of_rows()
        return 0

    def run(first: int, last: int) -> int:
        if empty.stack.kernel is not None:
            empty.stack.kernel.fit(first, last, empty.reml, results)
        for i in (first + np.flatnonzero(empty.status[first:last] == 0)).tolist():
            if i not in refused:
                empty.fit_alone(i)
        for i in refused.keys() & range(first, last):
            empty.refuse(i, refused[i])
        if sink is not None:
            sink.write(estimates_of(empty, slice(first, last)), first)
        reached[first:last] = True
        return last - first

    pieces, jobs = _pieces(empty.stack, n_jobs)
    bar = progress_bar(progress, count)
    try:
        # single fits of several threads would wait for each other in BLAS
        with one_blas_thread(jobs > 1 and empty.stack.kernel is None):
            open_ = (partial(run, *piece) for piece in pieces if not reached[slice(*piece)].all())
            tasks = chain((partial(check, one) for one in checks), open_)
            in_threads(lambda task: task(), ((task,) for task in tasks), jobs, None if bar is None else bar.update)
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

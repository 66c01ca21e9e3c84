"""Many responses on one design: streams and arrays of them cut in pieces, which are fitted by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import LMMError
from ...kernels.records.batches import NOT_FINITE, BatchSums
from ...support.blas_threads import one_blas_thread
from ...support.checks import plain_array
from ...support.memory import blas_callers
from ...support.progress import progress_bar
from ...support.seals import constant
from ...support.threads import in_threads, thread_count
from ...support.types import Array
from ...tables.responses import ResponseColumns, is_table
from ...tables.stored import StoredResponses, stored
from ..model import Model
from .batch_fit import CHUNK_BYTES, BatchFit, Curvature
from .looks import FIELDS, fit_alone, fit_together
from .one_factor import shared_design
from .parts import part_of
from .progress import Sink, begun, unfinished
from .responses_of_mask import ResponsesOfMask
from .sparse import SparseBlock, SparseResponses, SparseSums

if TYPE_CHECKING:
    from ...tables.rows import CallerRows
    from .looks import Shared, Sided
    from .several_factors import HierarchyDesign

__all__ = ["Run", "begin_many", "fit_drawn", "fit_few", "fit_many", "refuse_missing"]

B = TypeVar("B", bound=BatchFit)

WORTH_A_THREAD = 2**16
"""Numbers in the responses that are worth a thread, and in the last pieces."""

ROUND = 2
"""Pieces of a stream that are held for each thread."""

SPARSE = 256
"""Sparse responses that are summed at a time."""

ONE_BY_ONE, WORTH_ONE = 64, 8
"""Responses in a piece, and worth a thread, where each takes its own time: several grouping factors."""


class _Labels:
    """Labels of the responses of a stream, as its blocks are read."""

    def __init__(self) -> None:
        self.parts: list[NDArray[Any]] = []
        self.known = True

    def add(self, block: Any) -> None:
        """Those of a block; of blocks without any the stream has none."""
        if isinstance(block, (ResponseColumns, StoredResponses)) and block.labels is not None:
            self.parts.append(block.labels)
        else:
            self.known = False

    @property
    def all(self) -> NDArray[Any] | None:
        """Those of all responses read, None where some have none."""
        return np.concatenate(self.parts) if self.known and self.parts else None


def _blocks(Y: Any, rows: CallerRows, labels: _Labels, most: float) -> tuple[Iterator[Any], int | None, Any]:
    """Blocks of responses (`most` bytes of a chunk), their number if it is known, the whole if it can be indexed."""
    n = len(rows.positions)
    if isinstance(Y, ResponsesOfMask):
        return iter([Y]), len(Y), Y
    if is_table(Y):
        Y = ResponseColumns(Y, rows)
        labels.add(Y)
        return iter([Y]), len(Y), Y
    found = stored(Y, rows)
    if found is not None:
        labels.add(found)
        return found.pieces(max(1, int(most / (8 * n)))), len(found), found
    if hasattr(Y, "shape") and len(Y.shape) == 1:
        Y = rows.values(_unmasked(Y), "Y")
        Y = Y[None, :]
    if hasattr(Y, "ndim") and hasattr(Y, "shape"):
        if Y.ndim != 2 or Y.shape[1] != n:
            dropped = rows.used is not None and tuple(Y.shape[1:]) == (rows.count,)
            remedy = "give Y[:, model.rows_used]" if dropped else "transpose it if needed"
            raise LMMError(f"Y must have the shape (n_responses, {n}), not {tuple(Y.shape)}; {remedy}")
        Y = _unmasked(Y)
        if np.asarray(Y[:0]).dtype.kind not in "fiub":
            raise LMMError(f"Y must hold numbers, not {np.asarray(Y[:0]).dtype}")
        return iter([Y]), int(Y.shape[0]), Y
    if not isinstance(Y, Iterable):
        raise LMMError("Y must be an array of shape (n_responses, n_obs) or an iterable of such blocks")

    def checked() -> Iterator[Any]:
        for block in Y:
            block = ResponseColumns(block, rows) if is_table(block) else stored(block, rows) or block
            labels.add(block)
            if isinstance(block, (ResponseColumns, StoredResponses)):
                yield block
                continue
            array = np.atleast_2d(plain_array(_unmasked(block), "a block of Y"))
            if array.ndim != 2 or array.shape[1] != n:
                raise LMMError(f"a block of Y has the shape {array.shape}; every block needs {n} columns")
            if array.dtype.kind not in "fiub":
                raise LMMError(f"a block of Y must hold numbers, not {array.dtype}")
            yield array

    return checked(), None, None


def _unmasked(Y: Any) -> Any:
    """Responses with NaN where they are masked: such a response is listed as invalid."""
    if isinstance(Y, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(Y), np.nan, Y.data)
    return Y


def _chunks(
    blocks: Iterator[Any], size: int, smallest: int, jobs: int, sums: SparseSums | None = None, beyond: int = 0
) -> Iterator[Any]:
    """Pieces of at most `size` rows; smaller ones towards the end of a block, so that all threads end together.

    Pieces of sparse matrices are summed by the threads that fit them, if `sums` says how.  So many rows `beyond` the
    last are of other runs, which the same threads go on with.
    """
    for block in blocks:
        if sums is not None and getattr(block, "sparse", False):
            length = SPARSE if jobs == 1 else max(8, min(SPARSE, len(block) // (4 * jobs)))
            for begin in range(0, len(block), length):
                yield SparseBlock(block, np.arange(begin, min(begin + length, len(block))), sums)
            continue
        begin = 0
        count = block.shape[0]
        while begin < count:
            share = (count - begin + beyond) // (2 * jobs) // 8 * 8
            length = min(size, max(share, smallest)) if jobs > 1 else size
            yield block[begin : begin + length]
            begin += length


def begin_many(
    empty: Callable[[int, Any], B],
    Y: Any,
    jobs: int,
    memory: float = 64.0,
    out: Any = None,
    resume: BatchFit | None = None,
    beyond: int = 0,
) -> Run[B]:
    """A run over many responses that is ready to be made.

    Parameters
    ----------
    empty : callable
        Makes an empty batch for so many responses, which are kept if they are given.
    jobs : int
        Threads at most.
    memory, out, resume
        As for `LinearMixedModel.fit_many`; out may be a Sink.
    beyond : int
        Responses of other runs, which the same threads go on with.
    """
    none = empty(0, None)
    model = none.model
    if not memory > 0.0:
        raise LMMError(f"memory={memory} must be a positive number of megabytes")
    labels = _Labels()
    blocks, count, whole = _blocks(Y, model.design.caller_rows, labels, memory * 2**20)
    size = int(max(8, min(CHUNK_BYTES, memory * 2**20 / (2 * jobs)) // (8 * model.nobs) // 8 * 8))
    smallest = max(8, WORTH_A_THREAD // model.nobs // 8 * 8)
    if _one_by_one(model, none.reml):
        size, smallest = min(size, ONE_BY_ONE), WORTH_ONE
    if count is not None:
        jobs = min(jobs, max(1, (count + beyond) // smallest))
    sums = None
    if isinstance(whole, StoredResponses) and whole.sparse and _by_sums(model, none.reml):
        sums = model.once("sums of sparse responses", lambda: SparseSums(model))
        whole = SparseResponses(whole, sums)
    blocks = _chunks(blocks, size, smallest, jobs, sums, beyond)
    if resume is not None and count is None:
        raise LMMError("resume needs an array or a table; of a stream fit the rest, and join both by concat")
    sink = out if out is None or isinstance(out, Sink) else Sink(out, none, count)
    watched = not constant(whole.Y if isinstance(whole, ResponsesOfMask) else whole)
    return Run(empty, blocks, (count, whole), jobs, _Keeping(True, watched, sink, resume, labels))


def fit_many(
    empty: Callable[[int, Any], B],
    Y: Any,
    n_jobs: int | None = None,
    progress: bool | None = None,
    memory: float = 64.0,
    out: Any = None,
    resume: BatchFit | None = None,
) -> B:
    """Fit many responses; see `LinearMixedModel.fit_many`, and `begin_many`."""
    return begin_many(empty, Y, thread_count(n_jobs), memory, out, resume).make(progress)


def refuse_missing(batch: BatchFit) -> None:
    """Refuse responses with values that are missing or not finite.

    Raises
    ------
    LMMError
        Naming the first of them, and the observation where the responses are there.
    """
    for i in batch.invalid.tolist():
        where = ""
        if batch.responses is not None:
            bad = np.flatnonzero(~np.isfinite(np.asarray(batch.responses[np.array([i])], dtype=np.float64)[0]))
            if not len(bad):
                continue
            where = f", observation {bad[0]}"
        elif batch.status[i] != NOT_FINITE:
            continue
        raise LMMError(
            f"Y is missing or not finite at response {i}{where}; missing='drop' fits each response on the observations "
            "that it has"
        )


def fit_few(empty: Callable[[int, Any], B], Y: Array) -> B:
    """Fit a few responses by themselves, where what they share would take longer to make than their fits do.

    Inside the parameter space they are tested as those that share it: it is made then, if it is asked for.
    """
    out = empty(len(Y), Y)
    out.seals = kernels.line_seals(np.ascontiguousarray(Y))
    out.status[:] = out.n_evaluations[:] = 0
    fit_alone(out.model, lambda which: Y[which], out, slice(0, len(Y)))
    out.alone &= out.status != 1
    return out


def fit_drawn(
    empty: Callable[[int, Any], B],
    blocks: Iterator[Any],
    count: int,
    whole: Any,
    size: int,
    n_jobs: int | None,
    progress: bool | None,
) -> B:
    """Fit responses that are drawn, in blocks of up to `size`, on the thread that fits them.

    Parameters
    ----------
    empty : callable
        Makes an empty batch for so many responses, which are kept if they are given.
    blocks : iterator
        Functions that return responses, of the length of these.
    count, size : int
        Responses in all and in a block.
    whole : array-like or None
        Draws them again.
    n_jobs, progress
        As for `fit_many`.
    """
    jobs = min(thread_count(n_jobs), max(1, -(-count // size)))
    return Run(empty, blocks, (count, whole), jobs, _Keeping()).make(progress)


def _rounds(tasks: Iterator[Any], size: int) -> Iterator[Iterator[Any]]:
    """Some tasks at a time, each let go once it is taken; what came before an error of the tasks is done first."""
    while True:
        some: deque[Any] = deque()
        error: Exception | None = None
        try:
            some.extend(islice(tasks, size))
        except Exception as found:
            error = found
        count = len(some)
        if count:
            yield (some.popleft() for _ in range(count))
        if error is not None:
            raise error
        if not count:
            return


class _Keeping(NamedTuple):
    """What is kept of a run, and what it goes on from."""

    kept: bool = False
    """What breaks the run off carries what is finished as its attribute `batch`; of draws, which are drawn again at
    will, nothing has to be marked as missing."""
    watched: bool = False
    """The responses are the caller's, who may change them later."""
    sink: Sink | None = None
    resume: BatchFit | None = None
    labels: _Labels | None = None


class Run(Generic[B]):
    """Fits of responses piece by piece, by any number of threads.

    Parameters
    ----------
    empty : callable
        Makes an empty batch for so many responses, which are kept if they are given.
    blocks : iterator
        Arrays, or functions with a length that return them.
    responses : tuple
        Their number in all (None: unknown), and the whole if it can be indexed.
    jobs : int
    keeping : _Keeping
    """

    def __init__(
        self, empty: Callable[[int, Any], B], blocks: Iterator[Any], responses: tuple[int | None, Any], jobs: int,
        keeping: _Keeping,
    ) -> None:  # fmt: skip
        self.empty, self.blocks, self.jobs, self.keeping = empty, blocks, jobs, keeping
        self.count, whole = responses
        count, resume = self.count, keeping.resume
        self.pieces: list[B] = [] if count is None else [empty(count, whole)]
        if count is not None and keeping.watched:
            self.pieces[0].seals = np.empty((count, 2), dtype=np.uint64)
        self.reached = np.zeros(0 if count is None else count, dtype=bool)
        if resume is not None:
            self.reached = begun(self.pieces[0], resume)
        self.finished: set[int] = set()
        none = empty(0, None)
        self.model = none.model
        self.shared = None if _alone_by_nature(self.model, none.reml) else _shared(self.model)

    def tasks(self) -> Iterator[tuple[Any, BatchFit, int, int]]:
        """What `fit` takes, piece by piece."""
        at = 0
        for block in self.blocks:
            if self.count is None:
                # results of a stream grow with it
                self.pieces.append(self.empty(len(block), None))
                yield block, self.pieces[-1], 0, at
            elif not self.reached[at : at + len(block)].all():
                yield block, self.pieces[0], at, at
            at += len(block)

    def fit(self, block: Any, into: BatchFit, first: int, begin: int) -> int:
        """Fit a piece into rows first, first + 1, ... of a batch; how many responses it has."""
        self._fit(block, into, first)
        if self.keeping.sink is not None:
            self.keeping.sink.write(part_of(into, np.arange(first, first + len(block))), begin)
        self.reached[first : first + len(block)] = True  # of a stream, where it is empty, nothing
        self.finished.add(begin)
        return len(block)

    def _fit(self, block: Any, into: BatchFit, first: int) -> None:
        model, shared = self.model, self.shared
        if shared is not None and _by_scores(model, block):
            lines, scores = block.scores(), block.meaning
            fit_together(shared, lines, into, first, scores.meaning)
            into.params[first : first + len(lines)] += scores.coefficients

            def responses(which: NDArray[np.intp]) -> Array:
                found: Array = block.responses(lines, which)
                return found

            if into.seals is not None:
                into.seals[first : first + len(lines)] = block.seals()
            fit_alone(model, responses, into, slice(first, first + len(lines)))
            return
        if isinstance(block, ResponsesOfMask) and isinstance(shared, kernels.BatchDesign):
            seals = None if into.seals is None else into.seals[first : first + len(block)]
            fit_together(shared, block.sums(shared, seals), into, first, BatchSums())
            fit_alone(model, lambda which: block[which], into, slice(first, first + len(block)))
            return
        dense = np.ascontiguousarray(block() if callable(block) else block, dtype=np.float64)
        if into.seals is not None:
            into.seals[first : first + len(dense)] = kernels.line_seals(dense)
        if shared is None:
            into.status[first : first + len(dense)] = into.n_evaluations[first : first + len(dense)] = 0
        else:
            fit_together(shared, dense, into, first)
        fit_alone(model, lambda which: dense[which], into, slice(first, first + len(dense)))
        if self.count is None and shared is not None and not model.one_by_one:
            into.curvature = _curvature(cast("kernels.BatchDesign", shared), dense, into)

    def found(self, broken: bool = False) -> B:
        """All responses, those that a run which is broken off has not reached as missing; of a stream those before."""
        if self.count is not None:
            whole = self.pieces[0] if self.reached.all() else unfinished(self.pieces[0], self.reached)
        else:
            pieces, at = [], 0
            for piece in self.pieces:
                if at not in self.finished:
                    break
                pieces.append(piece)
                at += len(piece)
            whole = _joined(self.empty, pieces)
        if self.keeping.labels is not None and not (broken and self.count is None):
            whole.labels = self.keeping.labels.all
        return whole

    def make(self, progress: bool | None) -> B:
        """Fit all pieces by threads of its own."""
        bar = progress_bar(progress, self.count)
        try:
            # our threads would wait for each other in BLAS
            several = len(self.model.factors) > 1 or self.model.design.residual is not None
            callers = blas_callers(self.jobs) if several else self.jobs
            tasks = self.tasks()
            with one_blas_thread(several):
                # the blocks of a stream are drawn here, some at a time
                for some in _rounds(tasks, ROUND * self.jobs) if self.count is None else (tasks,):
                    in_threads(self.fit, some, callers, None if bar is None else bar.update)
        except BaseException as error:
            if self.keeping.kept:
                error.batch = self.found(True)  # type: ignore[attr-defined]
            raise
        finally:
            if bar is not None:
                bar.close()
        return self.found()


def _curvature(shared: Sided | HierarchyDesign, Y: Array, fits: BatchFit) -> Curvature:
    """What tests need of the responses of a block."""
    theta, rank = np.nan_to_num(fits.theta_o), fits.model.problem.rank
    _, _, shift, hess = shared.contrasts(Y, fits.reml, theta, np.eye(1, rank))
    i, j = np.tril_indices(hess.shape[1])
    singles = {k: Y[k].copy() for k in np.flatnonzero(fits.alone & (fits.status >= 0)).tolist()}
    return Curvature(shift, hess[:, i, j], singles)


def _alone_by_nature(model: Model, reml: bool) -> bool:
    """Whether no row tells the residual variance by itself, so that each response may have an optimum or none."""
    return model.problem.saturated or (model.problem.outside > 0 and not reml)


def _by_sums(model: Model, reml: bool) -> bool:
    """Whether sums of sparse responses are all that the lanes take."""
    return len(model.factors) == 1 and not model.one_by_one and not _alone_by_nature(model, reml)


def _one_by_one(model: Model, reml: bool) -> bool:
    """Whether responses of several grouping factors are fitted one after the other."""
    if len(model.factors) == 1:
        return False
    from .several_factors import HierarchyDesign

    alone = model.one_by_one or _alone_by_nature(model, reml)
    return alone or isinstance(shared_design(model), HierarchyDesign)


def _by_scores(model: Model, block: Any) -> bool:
    """Whether a block is drawn by scores of this design."""
    scores = getattr(block, "meaning", None)
    return scores is not None and scores.model.problem is model.problem


def _shared(model: Model) -> Shared | None:
    """What fits many responses of a model, None where each is fitted by itself."""
    if not model.one_by_one:
        return shared_design(model)
    if model.design.residual is None:
        return None
    from .visits import visit_design

    return visit_design(model)


def _joined(empty: Callable[[int, Any], B], pieces: list[B]) -> B:
    out = empty(sum(map(len, pieces)), None)
    for name in (*FIELDS, "alone", "n_evaluations"):
        if pieces:
            np.concatenate([getattr(piece, name) for piece in pieces], out=getattr(out, name))
    out.curvature = Curvature.joined([piece.curvature for piece in pieces])
    return out

"""Simulated responses in counter-based streams, and fits of them without storing them.

Where what a fit sees of a response can be drawn by itself (see `scores`), it is, and the response is made of it only
when it is asked for: the responses of a stream are the same in either case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..design.residual import ResidualPart
from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.many.batch_fit import BatchFit
from ..estimation.many.pieces import fit_drawn
from ..estimation.model import Model
from ..support.checks import check_count
from ..support.seeds import Seed, beside, check_first, key_of, stream
from ..support.types import Array
from .nested import NestedBlock, NestedResponses, nested_scores
from .scores import Scores
from .shapes import Shape, checked_draw, normal, shape_of

__all__ = [
    "Drawing",
    "Fresh",
    "Generating",
    "Redrawn",
    "correlated",
    "drawing",
    "drawn_model",
    "draws",
    "parametric",
    "simulate",
    "simulate_fit",
    "simulate_into",
    "stream_size",
]

Draw = Callable[[np.random.Generator, int], NDArray[Any]]
"""(generator at the beginning of a block, count) -> the first so many responses of the block."""
B = TypeVar("B", bound=BatchFit)

STREAM = 512
"""Responses that share a block of a stream, fewer where they are long: draws depend on seed, design and place."""

MOST_BYTES = 2**37
"""Responses that take more than this together (137 GB) are not drawn at once."""

_ROWS = 8


class Generating(Protocol):
    """What simulation needs to know of a fit, or of anything else that responses are drawn from."""

    @property
    def model(self) -> Model:
        """The design."""

    @property
    def sigma2(self) -> float:
        """Residual variance."""

    @property
    def relative_factor(self) -> Array:
        """Lambda in natural units: the random effects have covariance sigma2 Lambda Lambda'."""

    @property
    def phi(self) -> Array:
        """Parameters of the residual structure, empty where residuals are independent."""

    @property
    def population_mean(self) -> Array:
        """X beta plus offset, (nobs,)."""


class Fresh(NamedTuple):
    """What is drawn where some effects are kept.

    Attributes
    ----------
    effects : (n, factors) bool array
        Whether the effects of a row's level of each factor are drawn; those of others are part of the mean.
    correlate : callable or None
        In the place of `correlated`, where residuals are drawn given others.
    """

    effects: NDArray[np.bool_]
    correlate: Callable[[Array], None] | None = None


def parametric(source: Generating, fresh: Fresh | None = None) -> Draw:
    """Draws of y = X beta + Z b + e with new random effects and errors: by scores where these can be drawn.

    Parameters
    ----------
    source : Generating
    fresh : Fresh, optional
        What is drawn, by default all.
    """
    return _effects_and_errors(source, fresh) if fresh is not None else _scores(source) or _effects_and_errors(source)


def _scores(source: Generating) -> Scores | None:
    """Draws of scores, where the design has one factor and determines a fit whose residuals are independent."""
    model = source.model
    if len(model.factors) != 1 or model.one_by_one:
        return None
    try:
        model = model.fittable(lambda rng: _effects_and_errors(source)(rng, 1)[0])
    except LMMError:
        return None
    if model.problem.saturated:
        return None
    return Scores(model, source.sigma2, source.relative_factor, source.population_mean)


def drawing(source: Generating, draw: str | Draw = "normal", fresh: Fresh | None = None) -> Draw:
    """Draws by the name of a distribution of effects and errors (see `shapes`), or by the caller's function.

    Raises
    ------
    LMMError
        For an unknown name, or a function where effects are kept (`fresh`).
    """
    if isinstance(draw, str):
        shape = shape_of(draw)
        return parametric(source, fresh) if shape is None else _effects_and_errors(source, fresh, shape)
    if not callable(draw) or isinstance(draw, type):
        raise LMMError(f"draw must be 'normal', 't(5)', 'skewed(1)' or a function (rng, count), not {draw!r:.60}")
    if fresh is not None:
        raise LMMError("draw is a function that draws whole responses; leave out data=, effects= and random_effects=")
    return checked_draw(draw, source.model.nobs)


def _effects_and_errors(source: Generating, fresh: Fresh | None = None, numbers: Shape = normal) -> Draw:
    """Draws by an effect for each level and an error for each observation."""
    model = source.model
    sigma = float(np.sqrt(source.sigma2))
    # b = u (sigma Lambda)': the factor goes to the columns of Z, once
    turned = np.ascontiguousarray((model.exog_re @ (sigma * source.relative_factor)).T)
    if fresh is not None:
        for f, own in zip(model.factors, fresh.effects.T, strict=True):
            turned[f.columns] *= own
    factors = [(f.grouping.index, len(f.grouping.labels), f.start, f.stop) for f in model.factors]
    mean = source.population_mean
    scale = sigma if model.weights is None else sigma / np.sqrt(model.weights)
    correlate = None if fresh is None else fresh.correlate
    if correlate is None and model.residual is not None:
        correlate = correlated(model.residual, source.phi)

    def draw(rng: np.random.Generator, count: int) -> Array:
        streams = [beside(rng, place + 1) for place in range(len(factors))]
        y = numbers(rng, (count, model.nobs))
        if correlate is not None:
            correlate(y)
        effects = [
            numbers(own, (count, stop - start, m)) for own, (_, m, start, stop) in zip(streams, factors, strict=True)
        ]
        # a few rows at a time: what is added to them stays in the cache
        work = np.empty((_ROWS, model.nobs))
        for begin in range(0, count, _ROWS):
            part = y[begin : begin + _ROWS]
            part *= scale
            part += mean
            own = work[: len(part)]
            for u, (index, _, start, stop) in zip(effects, factors, strict=True):
                for j in range(start, stop):
                    np.take(u[begin : begin + _ROWS, j - start], index, axis=1, out=own, mode="clip")
                    own *= turned[j]
                    part += own
        return y

    return draw


def correlated(part: ResidualPart, phi: Array) -> Callable[[Array], None]:
    """What turns independent draws (count, nobs) into residuals with the covariance of a structure, in place."""
    roots = [(rows, np.linalg.cholesky(own.matrix(phi, where))) for own, where, rows in part.alike()]

    def correlate(y: Array) -> None:
        for rows, root in roots:
            y[:, rows] = y[:, rows] @ root.T

    return correlate


def stream_size(draw: Draw, nobs: int) -> int:
    """Responses of this length that share a stream: at most some 16 MB of them."""
    return max(1, min(draw.size if isinstance(draw, Scores) else STREAM, 2**21 // nobs))


@dataclass(frozen=True)
class Drawing:
    """Consecutive responses of one block of a stream, drawn when they are called for.

    Attributes
    ----------
    draw : callable
    key : (2,) array
    block : int
        Of the stream.
    skip, count : int
        Responses of the block that come before these, which are drawn and let go, and how many these are.
    """

    draw: Draw
    key: NDArray[np.uint64]
    block: int
    skip: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __call__(self) -> NDArray[Any]:
        """The responses (count, nobs)."""
        if isinstance(self.draw, Scores):
            return self.responses(self.scores(), np.arange(self.count))
        return self.draw(stream(self.key, self.block), self.skip + self.count)[self.skip :]

    @property
    def meaning(self) -> Scores | None:
        """What the scores mean, where these can be drawn."""
        return self.draw if isinstance(self.draw, Scores) else None

    def scores(self) -> Array:
        """The scores of the responses (count, width)."""
        assert isinstance(self.draw, Scores)
        return self.draw.lines(stream(self.key, self.block), self.skip + self.count)[self.skip :]

    def responses(self, lines: Array, places: NDArray[np.intp]) -> Array:
        """Some of the responses, of which the scores are known."""
        assert isinstance(self.draw, Scores)
        return self.draw.completed(stream(self.key, self.block), lines[places], self.skip + places)


def draws(draw: Draw, n: int, key: NDArray[np.uint64], size: int | None = None, first: int = 0) -> Iterator[Drawing]:
    """Responses `first` to `first + n - 1` of a stream in blocks, each a function: threads draw as well as fit.

    Blocks are of `size` responses, by default as many as those of short ones.
    """
    size = stream_size(draw, 1) if size is None else size
    at, end = first, first + n
    while at < end:
        block, skip = divmod(at, size)
        count = min(size - skip, end - at)
        yield Drawing(draw, key, block, skip, count)
        at += count


class Redrawn:
    """The responses of `simulate_fit`, drawn again where they are asked for: an array (n, nobs) to be read only.

    Parameters
    ----------
    source : Generating
    n : int
    key : (2,) array
    first : int
        Place of the first of them in the stream.
    draw : str or callable
        As for `drawing`.
    """

    draws_again = True

    def __init__(
        self, source: Generating, n: int, key: NDArray[np.uint64], first: int = 0, draw: str | Draw = "normal"
    ) -> None:
        self.shape = (n, source.model.nobs)
        self._source, self._draw = source, draw
        self._key = key
        self._first = first

    def __getitem__(self, at: int | slice | NDArray[np.intp]) -> Array:
        if isinstance(at, int | np.integer):
            return np.asarray(self[np.array([int(at) % self.shape[0]])][0])
        chosen = np.arange(self.shape[0])[at]
        out = np.empty((len(chosen), self.shape[1]))
        for mine, places, block in self._blocks(chosen):
            out[mine] = block.responses(block.scores(), places) if block.meaning else block()[places]
        return out

    def scores(self, chosen: NDArray[np.intp]) -> tuple[Array, Scores] | None:
        """Scores of some of the responses, and what they mean; None where they are not drawn by scores."""
        blocks = list(self._blocks(chosen))
        meaning = blocks[0][2].meaning if blocks else None
        if meaning is None:
            return None
        out = np.empty((len(chosen), meaning.meaning.width))
        for mine, places, block in blocks:
            out[mine] = block.scores()[places]
        return out, meaning

    def _blocks(self, chosen: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], Drawing]]:
        """Blocks that hold the chosen responses: which of these, at which places of the block."""
        draw = drawing(self._source, self._draw)
        blocks, places = np.divmod(chosen + self._first, stream_size(draw, self.shape[1]))
        for block in np.unique(blocks).tolist():
            mine = np.flatnonzero(blocks == block)
            yield mine, places[mine], Drawing(draw, self._key, block, 0, int(places[mine].max()) + 1)


def simulate(
    source: Generating, n: int, seed: Seed = None, first: int = 0, fresh: Fresh | None = None,
    how: str | Draw = "normal",
) -> Array:  # fmt: skip
    """The n responses (n, nobs) that `simulate_fit` fits for the same seed; `fresh` and `how` as for `drawing`."""
    nobs = source.model.nobs
    check_count(n, "n")
    check_first(first, seed)
    if n * nobs * 8 > MOST_BYTES:
        raise LMMError(
            f"n={n} responses of {nobs} observations would take {n * nobs * 8 / 1e9:,.0f} GB; draw fewer, or fit them "
            "without storing them by simulate_fit"
        )
    draw = drawing(source, how, fresh)
    return np.concatenate([block() for block in draws(draw, n, key_of(seed), stream_size(draw, nobs), first)])


def simulate_fit(
    source: Generating,
    n: int,
    seed: Seed = None,
    *,
    reml: bool = True,
    n_jobs: int | None = None,
    progress: bool | None = None,
    fit: Model | None = None,
    draw: Draw | None = None,
    kind: type[Fit] = Fit,
    first: int = 0,
) -> BatchFit:
    """Draw n responses and fit each, without storing the responses; see `simulate_into`."""
    return simulate_into(
        BatchFit, source, n, seed, reml=reml, n_jobs=n_jobs, progress=progress, fit=fit, draw=draw, kind=kind,
        first=first,
    )  # fmt: skip


def drawn_model(source: Generating, fit: Model | None) -> Model:
    """The model that is fitted to draws, by default the one that generates, with a typical response.

    Raises
    ------
    LMMError
        For a model of other rows, or one that no response determines.
    """
    if fit is not None and fit.nobs != source.model.nobs:
        raise LMMError(f"fit has {fit.nobs} observations but the responses drawn have {source.model.nobs}")
    return (source.model if fit is None else fit).fittable(lambda rng: _effects_and_errors(source)(rng, 1)[0])


def simulate_into(
    batch: type[B],
    source: Generating,
    n: int,
    seed: Seed,
    *,
    reml: bool,
    n_jobs: int | None,
    progress: bool | None,
    fit: Model | None,
    draw: Draw | None = None,
    kind: type[Fit],
    first: int = 0,
    how: str | Draw = "normal",
) -> B:
    """Draw n responses and fit each, without storing the responses.

    Parameters
    ----------
    batch, kind : types
        Of the record of all fits, and of a single one.
    source : Generating
        What generates the data.
    n : int
    seed : int, sequence of int, SeedSequence or Generator, optional
    reml : bool
    n_jobs : int, optional
        Threads; results do not depend on it.
    progress : bool, optional
    fit : Model, optional
        The model to fit, by default the one that generates.
    draw : callable, optional
        Draws (generator, count) -> (count, nobs) in place of the parametric ones, which are not made again.
    first : int
        Place in the stream of the first response drawn.
    how : str or callable
        As for `drawing`.
    """
    check_count(n, "n")
    check_first(first, seed)
    model, key = drawn_model(source, fit), key_of(seed)
    whole = Redrawn(source, n, key, first, how) if draw is None else None
    draw = drawing(source, how) if draw is None else draw
    size = stream_size(draw, source.model.nobs)
    blocks: Iterator[Any] = draws(draw, n, key, size, first)
    nested = None if fit is None or whole is None else nested_scores(draw, model)
    if nested is not None:
        blocks = (NestedBlock(block, nested) for block in blocks)
    kept = whole if nested is None or whole is None else NestedResponses(whole, nested)
    return fit_drawn(partial(batch, model, kind, reml), blocks, n, kept, size, n_jobs, progress)

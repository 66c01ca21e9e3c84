"""Simulated responses in counter-based streams, and fits of them without storing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..design.residual import ResidualPart
from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.many.batch_fit import BatchFit
from ..estimation.many.policy import fit_drawn
from ..estimation.model import Model
from ..support.checks import check_count
from ..support.seeds import Seed, beside, check_first, key_of, stream

__all__ = [
    "Drawing",
    "Generating",
    "Redrawn",
    "correlated",
    "draws",
    "parametric",
    "simulate",
    "simulate_fit",
    "simulate_into",
    "stream_size",
]

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], NDArray[Any]]
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


def parametric(source: Generating, fresh: NDArray[np.bool_] | None = None) -> Draw:
    """Draws of y = X beta + Z b + e with new random effects and errors.

    Parameters
    ----------
    source : Generating
    fresh : (n, factors) bool array, optional
        Whether the effects of a row's level of each factor are drawn; those of others are part of the mean.
    """
    model = source.model
    sigma = float(np.sqrt(source.sigma2))
    # b = u (sigma Lambda)': the factor goes to the columns of Z, once
    turned = np.ascontiguousarray((model.exog_re @ (sigma * source.relative_factor)).T)
    if fresh is not None:
        for f, own in zip(model.factors, fresh.T, strict=True):
            turned[f.columns] *= own
    factors = [(f.grouping.index, len(f.grouping.labels), f.start, f.stop) for f in model.factors]
    mean = source.population_mean
    scale = sigma if model.weights is None else sigma / np.sqrt(model.weights)
    correlate = None if model.residual is None else correlated(model.residual, source.phi)

    def draw(rng: np.random.Generator, count: int) -> Array:
        streams = [beside(rng, place + 1) for place in range(len(factors))]
        y = rng.standard_normal((count, model.nobs))
        if correlate is not None:
            correlate(y)
        effects = [
            own.standard_normal((count, stop - start, m))
            for own, (_, m, start, stop) in zip(streams, factors, strict=True)
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


def stream_size(nobs: int) -> int:
    """Responses of this length that share a stream: at most some 16 MB of them."""
    return max(1, min(STREAM, 2**21 // nobs))


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
        return self.draw(stream(self.key, self.block), self.skip + self.count)[self.skip :]


def draws(draw: Draw, n: int, key: NDArray[np.uint64], size: int = STREAM, first: int = 0) -> Iterator[Drawing]:
    """Responses `first` to `first + n - 1` of a stream in blocks, each a function: threads draw as well as fit."""
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
    """

    draws_again = True

    def __init__(self, source: Generating, n: int, key: NDArray[np.uint64], first: int = 0) -> None:
        self.shape = (n, source.model.nobs)
        self._source = source
        self._key = key
        self._first = first
        self._size = stream_size(source.model.nobs)

    def __getitem__(self, at: int | slice | NDArray[np.intp]) -> Array:
        if isinstance(at, int | np.integer):
            return np.asarray(self[np.array([int(at) % self.shape[0]])][0])
        blocks, places = np.divmod(np.arange(self.shape[0])[at] + self._first, self._size)
        out = np.empty((len(places), self.shape[1]))
        draw = parametric(self._source)
        for block in np.unique(blocks).tolist():
            mine = blocks == block
            out[mine] = draw(stream(self._key, block), int(places[mine].max()) + 1)[places[mine]]
        return out


def simulate(
    source: Generating, n: int, seed: Seed = None, first: int = 0, fresh: NDArray[np.bool_] | None = None
) -> Array:
    """The n responses (n, nobs) that `simulate_fit` fits for the same seed; `fresh` as for `parametric`."""
    nobs = source.model.nobs
    check_count(n, "n")
    check_first(first, seed)
    if n * nobs * 8 > MOST_BYTES:
        raise LMMError(
            f"n={n} responses of {nobs} observations would take {n * nobs * 8 / 1e9:,.0f} GB; draw fewer, or fit them "
            "without storing them by simulate_fit"
        )
    size = stream_size(nobs)
    return np.concatenate([block() for block in draws(parametric(source, fresh), n, key_of(seed), size, first)])


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
        Draws (generator, count) -> (count, nobs) in place of the parametric ones.
    first : int
        Place in the stream of the first response drawn.
    """
    if fit is not None and fit.nobs != source.model.nobs:
        raise LMMError(f"fit has {fit.nobs} observations but the responses drawn have {source.model.nobs}")
    check_count(n, "n")
    check_first(first, seed)
    size, key = stream_size(source.model.nobs), key_of(seed)
    blocks = draws(parametric(source) if draw is None else draw, n, key, size, first)
    model = (source.model if fit is None else fit).fittable(lambda rng: parametric(source)(rng, 1)[0])
    whole = Redrawn(source, n, key, first) if draw is None else None
    return fit_drawn(partial(batch, model, kind, reml), blocks, n, whole, size, n_jobs, progress)

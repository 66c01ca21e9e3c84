"""Simulated responses in counter-based streams, and fits of them without storing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..estimation.fit import Fit
from ..estimation.many.batch_fit import BatchFit
from ..estimation.many.policy import fit_drawn
from ..estimation.model import Model
from ..support.checks import check_count
from ..support.seeds import Seed, key_of, stream

__all__ = [
    "Generating",
    "Redrawn",
    "draws",
    "parametric",
    "simulate",
    "simulate_fit",
    "simulate_into",
    "stream_size",
]

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]
B = TypeVar("B", bound=BatchFit)

STREAM = 512
"""Responses that share a stream, fewer where they are long: draws depend on the seed, the design and the position."""

MOST_BYTES = 2**37
"""Responses that take more than this together (137 GB) are not drawn at once."""

_ROWS = 8


class Generating(Protocol):
    """What simulation needs to know of a fitted or an assumed model."""

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
    def marginal_mean(self) -> Array:
        """X beta plus offset, (nobs,)."""


def parametric(source: Generating) -> Draw:
    """Draws of y = X beta + Z b + e with new random effects and errors."""
    model = source.model
    sigma = float(np.sqrt(source.sigma2))
    # b = u (sigma Lambda)': the factor goes to the columns of Z, once
    turned = np.ascontiguousarray((model.exog_re @ (sigma * source.relative_factor)).T)
    factors = [(f.grouping.index, len(f.grouping.labels), f.start, f.stop) for f in model.factors]
    mean = source.marginal_mean
    scale = sigma if model.weights is None else sigma / np.sqrt(model.weights)

    def draw(rng: np.random.Generator, count: int) -> Array:
        y = rng.standard_normal((count, model.nobs))
        effects = [rng.standard_normal((count, stop - start, m)) for _, m, start, stop in factors]
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


def stream_size(nobs: int) -> int:
    """Responses of this length that share a stream: at most some 16 MB of them."""
    return max(1, min(STREAM, 2**21 // nobs))


def draws(draw: Draw, n: int, key: NDArray[np.uint64], size: int = STREAM) -> Iterator[Callable[[], Array]]:
    """The blocks of n responses, each as a function that draws it: threads draw as well as fit."""
    for block, begin in enumerate(range(0, n, size)):
        count = min(size, n - begin)

        def make(block: int = block, count: int = count) -> Array:
            return draw(stream(key, block), count)

        yield make


class Redrawn:
    """The responses of `simulate_fit`, drawn again where they are asked for: an array (n, nobs) to be read only.

    Parameters
    ----------
    source : LMMResult or AssumedModel
    n : int
    key : (2,) array
    """

    def __init__(self, source: Generating, n: int, key: NDArray[np.uint64]) -> None:
        self.shape = (n, source.model.nobs)
        self._source = source
        self._key = key
        self._size = stream_size(source.model.nobs)

    def _block(self, block: int) -> Array:
        count = min(self._size, self.shape[0] - block * self._size)
        return parametric(self._source)(stream(self._key, block), count)

    def __getitem__(self, at: int | slice | NDArray[np.intp]) -> Array:
        if isinstance(at, int | np.integer):
            block, row = divmod(int(at) % self.shape[0], self._size)
            return np.asarray(self._block(block)[row])
        wanted = np.arange(self.shape[0])[at]
        blocks = wanted // self._size
        out = np.empty((len(wanted), self.shape[1]))
        for block in np.unique(blocks):
            mine = blocks == block
            out[mine] = self._block(int(block))[wanted[mine] - block * self._size]
        return out


def simulate(source: Generating, n: int, seed: Seed = None) -> Array:
    """The n responses (n, nobs) that `simulate_fit` fits for the same seed."""
    nobs = source.model.nobs
    check_count(n, "n")
    if n * nobs * 8 > MOST_BYTES:
        raise LMMError(
            f"n={n} responses of {nobs} observations would take {n * nobs * 8 / 1e9:,.0f} GB; draw fewer, or fit them "
            "without storing them by simulate_fit"
        )
    size = stream_size(nobs)
    return np.concatenate([block() for block in draws(parametric(source), n, key_of(seed), size)])


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
) -> BatchFit:
    """Draw n responses and fit each, without storing the responses; see `simulate_into`."""
    return simulate_into(
        BatchFit, source, n, seed, reml=reml, n_jobs=n_jobs, progress=progress, fit=fit, draw=draw, kind=kind
    )


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
) -> B:
    """Draw n responses and fit each, without storing the responses.

    Parameters
    ----------
    batch, kind : types
        Of the record of all fits, and of a single one.
    source : Fit or AssumedModel
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
    """
    if fit is not None and fit.nobs != source.model.nobs:
        raise LMMError(f"fit has {fit.nobs} observations but the responses drawn have {source.model.nobs}")
    check_count(n, "n")
    size, key = stream_size(source.model.nobs), key_of(seed)
    blocks = draws(parametric(source) if draw is None else draw, n, key, size)
    model = source.model if fit is None else fit
    whole = Redrawn(source, n, key) if draw is None else None
    return fit_drawn(partial(batch, model, kind, reml), blocks, n, whole, size, n_jobs, progress)

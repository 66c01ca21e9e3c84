"""Simulated responses in counter-based streams, and fits of them without storing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import LMMError

if TYPE_CHECKING:
    from .batch import BatchResult
    from .model import LinearMixedModel

__all__ = ["Generating", "draws", "key_of", "parametric", "simulate_fit", "stream"]

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]

STREAM = 128
"""Responses that share a stream: fixed, so that draws depend on the seed and the position alone."""


class Generating(Protocol):
    """What simulation needs to know of a fitted or an assumed model."""

    model: LinearMixedModel
    sigma2: float

    @property
    def relative_factor(self) -> Array:
        """Lambda in natural units: the random effects have covariance sigma2 Lambda Lambda'."""

    @property
    def marginal_mean(self) -> Array:
        """X beta plus offset, (nobs,)."""


def key_of(seed: int | np.random.Generator | None) -> NDArray[np.uint64]:
    if isinstance(seed, np.random.Generator):
        return seed.integers(0, 2**63, size=2, dtype=np.uint64)
    return np.asarray(np.random.SeedSequence(seed).generate_state(2, np.uint64), dtype=np.uint64)


def stream(key: NDArray[np.uint64], block: int) -> np.random.Generator:
    """The generator of one block of responses (Philox: any block can be drawn without those before it)."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))


def parametric(source: Generating) -> Draw:
    """Draws of y = X beta + Z b + e with new random effects and errors."""
    model = source.model
    m, q = model.problem.m, model.structure.q
    sigma = float(np.sqrt(source.sigma2))
    # b = u (sigma Lambda)': the factor goes to the columns of Z, once
    turned = np.ascontiguousarray((model.exog_re @ (sigma * source.relative_factor)).T)
    index = model.grouping.index
    mean = source.marginal_mean
    scale = sigma if model.weights is None else sigma / np.sqrt(model.weights)

    def draw(rng: np.random.Generator, count: int) -> Array:
        y = rng.standard_normal((count, model.nobs))
        u = rng.standard_normal((count, q, m))
        y *= scale
        y += mean
        for j in range(q):
            y += u[:, j].take(index, axis=1) * turned[j]
        return y

    return draw


def draws(draw: Draw, n: int, seed: int | np.random.Generator | None) -> Iterator[Callable[[], Array]]:
    """The blocks of n responses, each as a function that draws it: threads draw as well as fit."""
    if n < 1:
        raise LMMError(f"n={n} must be at least 1")
    key = key_of(seed)
    for block, begin in enumerate(range(0, n, STREAM)):
        count = min(STREAM, n - begin)

        def make(block: int = block, count: int = count) -> Array:
            return draw(stream(key, block), count)

        yield make


def simulate_fit(
    source: Generating,
    n: int,
    seed: int | np.random.Generator | None = None,
    *,
    reml: bool = True,
    n_jobs: int | None = None,
    progress: bool = False,
    fit: LinearMixedModel | None = None,
    draw: Draw | None = None,
) -> BatchResult:
    """Draw n responses and fit each, without storing the responses.

    Parameters
    ----------
    source : LMMResult or AssumedModel
        What generates the data.
    n : int
    seed : int or numpy Generator, optional
    reml : bool
    n_jobs : int, optional
        Threads; results do not depend on it.
    progress : bool
    fit : LinearMixedModel, optional
        The model to fit, by default the one that generates.
    draw : callable, optional
        Draws (generator, count) -> (count, nobs) in place of the parametric ones.

    Returns
    -------
    BatchResult
    """
    from .batch import fit_drawn

    blocks = draws(parametric(source) if draw is None else draw, n, seed)
    return fit_drawn(source.model if fit is None else fit, blocks, n, reml, n_jobs, progress)

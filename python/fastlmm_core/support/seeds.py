"""Seeds: what may start a stream of random numbers, and the streams of it that can be drawn in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from .checks import check_count

__all__ = ["Seed", "beside", "check_first", "check_seed", "generator_of", "key_of", "stream"]

Seed = int | Sequence[int] | np.random.SeedSequence | np.random.Generator | None
"""An integer or several, a SeedSequence, a Generator (which moves on), or None for numbers that nobody has seen."""


def key_of(seed: Seed) -> NDArray[np.uint64]:
    """The key (2,) of counter-based streams."""
    if isinstance(seed, np.random.Generator):
        return seed.integers(0, 2**63, size=2, dtype=np.uint64)
    return np.asarray(_sequence(seed).generate_state(2, np.uint64), dtype=np.uint64)


def check_seed(seed: Seed) -> None:
    """Refuse what cannot start a stream; a Generator is not moved on."""
    if not isinstance(seed, np.random.Generator):
        _sequence(seed)


def generator_of(seed: Seed) -> np.random.Generator:
    """A generator: the one given, or one that starts from the seed."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(_sequence(seed))


def stream(key: NDArray[np.uint64], block: int) -> np.random.Generator:
    """The generator of one block of a stream (Philox: any block can be drawn without those before it)."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))


def beside(rng: np.random.Generator, place: int) -> np.random.Generator:
    """A stream beside that of a block, from which nothing was drawn yet: each has room for 2^128 numbers.

    What is drawn of several kinds for each of some responses comes from a stream for each kind, so that the first
    responses do not depend on how many follow.
    """
    return np.random.Generator(rng.bit_generator.jumped(place))  # type: ignore[attr-defined]


def check_first(first: int, seed: Seed) -> None:
    """Refuse a place in a stream that cannot be meant.

    Raises
    ------
    LMMError
        For negative numbers, and for any place but 0 in a stream that has no seed or that moves on.
    """
    check_count(first, "first", 0)
    if first and (seed is None or isinstance(seed, np.random.Generator)):
        raise LMMError(
            f"first={first} needs a seed that stands for one stream: an integer, a sequence of them or a SeedSequence"
        )


def _sequence(seed: Any) -> np.random.SeedSequence:
    if seed is None:
        return np.random.SeedSequence()
    if isinstance(seed, np.random.SeedSequence):
        return seed
    if isinstance(seed, np.random.RandomState):
        raise LMMError("seed is a RandomState, numpy's legacy generator; give an integer or numpy.random.default_rng()")
    several = isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.ndim == 1)
    values = list(seed) if several else [seed]
    for value in values:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise LMMError(
                f"seed holds {value!r} of type {type(value).__name__!r}; give an integer, a sequence of integers, a "
                "SeedSequence or a Generator of numpy"
            )
        if value < 0:
            raise LMMError(f"seed={value} must not be negative")
    if not values:
        raise LMMError("seed is an empty sequence; give at least one integer")
    return np.random.SeedSequence([int(value) for value in values] if several else int(values[0]))

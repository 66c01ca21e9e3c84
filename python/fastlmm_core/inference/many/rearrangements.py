"""Rearrangements of observations that a permutation test may exchange: all of them, within blocks, blocks, or signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.checks import check_count
from ...support.seeds import Seed, key_of, stream
from ...support.types import Array
from ...tables.columns import Table

if TYPE_CHECKING:
    from ...design.design import Design

__all__ = ["SCHEMES", "Rearrangement", "Scheme", "block_codes", "check_scheme", "rearrangements", "signs"]


Scheme = Literal["freedman-lane", "sign-flip", "whole", "within"]

SCHEMES: tuple[str, ...] = get_args(Scheme)


class Rearrangement(NamedTuple):
    """One permutation: e* = sign e[order]."""

    order: NDArray[np.intp] | None
    sign: Array | None

    def of(self, e: Array) -> Array:
        """Residuals (n_responses, n), rearranged."""
        out = e if self.order is None else e[:, self.order]
        return out if self.sign is None else out * self.sign


def rearrangements(scheme: str, n: int, codes: NDArray[np.intp] | None, seed: Seed) -> Callable[[int], Rearrangement]:
    """The i-th random rearrangement of n observations, each from a stream of its own.

    Parameters
    ----------
    scheme : str
    n : int
    codes : (n,) int array or None
        Block of each observation; None: all are exchangeable.
    seed : seed

    Raises
    ------
    LMMError
        For blocks of which nothing can be exchanged.
    """
    key = key_of(seed)
    if codes is None:
        if scheme == "sign-flip":
            return lambda i: Rearrangement(None, signs(stream(key, i), n))
        return lambda i: Rearrangement(stream(key, i).permutation(n), None)
    m = int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=m)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    if scheme == "sign-flip":
        return lambda i: Rearrangement(None, signs(stream(key, i), m)[codes])
    if scheme == "whole":
        alike = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
        if max(map(len, alike)) < 2:
            raise LMMError("scheme='whole' exchanges blocks of one size, and no two of these have the same")
        kinds = [np.array([members[block] for block in blocks]) for blocks in alike]

        def whole(i: int) -> Rearrangement:
            rng, order = stream(key, i), np.empty(n, dtype=np.intp)
            for rows in kinds:
                order[rows] = rows[rng.permutation(len(rows))]
            return Rearrangement(order, None)

        return whole
    if sizes.max() < 2:
        raise LMMError("blocks: none has two observations, so that nothing can be exchanged within them")
    place = np.concatenate(members)

    def within(i: int) -> Rearrangement:
        # sorted by block, then by a random number
        shuffled = np.lexsort((stream(key, i).random(n), codes))
        order = np.empty(n, dtype=np.intp)
        order[place] = shuffled
        return Rearrangement(order, None)

    return within


def signs(rng: np.random.Generator, count: int) -> Array:
    """Random signs (count,)."""
    return np.asarray(2.0 * rng.integers(0, 2, count) - 1.0, dtype=np.float64)


def check_scheme(scheme: str, n: int) -> None:
    """Refuse an unknown scheme, and numbers of permutations that make no sense."""
    check_count(n, "n")
    if scheme not in SCHEMES:
        raise LMMError(f"scheme={scheme!r} is unknown: use {', '.join(map(repr, SCHEMES[:-1]))} or {SCHEMES[-1]!r}")


def block_codes(design: Design, blocks: Any) -> NDArray[np.intp]:
    """Blocks (n,) of the rows of a design: labels, a column, or the name of a factor or of a column of its data.

    Raises
    ------
    LMMError
        For labels of another number, and unknown names.
    """
    if isinstance(blocks, str):
        for factor in design.factors:
            if factor.grouping.name == blocks:
                return np.asarray(factor.grouping.index)
        if design.source is None:
            names = ", ".join(repr(f.grouping.name) for f in design.factors)
            raise LMMError(f"blocks={blocks!r} is no grouping factor ({names}): give a label for each observation")
        found = Table(design.source.table).column(blocks, "blocks").codes(design.kept)[0]
        return np.asarray(found, dtype=np.intp)
    values = np.asarray(design.caller_rows.values(blocks, "blocks"))
    if values.shape != (len(design.exog),):
        raise LMMError(f"blocks must have a label for each of the {len(design.exog)} observations")
    codes: NDArray[np.intp] = np.unique(values, return_inverse=True)[1].reshape(-1)
    return codes

"""Arrays that a caller gave and may change: copied where they are small, sealed where they are large.

A copy of large arrays would cost a quarter of a fit or more.  A seal is what tells later, at hardly any cost, whether
the order of the numbers is still what it was: sums modulo 2^64 of the bits of one block in APART, those of all blocks
added up.  It is certain to find one changed number in these blocks, and any rearrangement of them that moves numbers by
other than multiples of APART blocks.
"""

from __future__ import annotations

import mmap
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["SMALL", "constant", "own", "seal"]

A = TypeVar("A", bound=NDArray[Any])
Bits = NDArray[np.uint64]

SMALL = 2**16
"""Bytes up to which an array is copied: some microseconds."""

BLOCK, APART = 4096, 16


def own(values: A) -> A:
    """A copy of a small array; a large one as it is."""
    return values.copy("K") if values.nbytes <= SMALL else values


def seal(values: NDArray[Any]) -> list[Bits]:
    """Sums of the bits of some blocks of an array of one or two dimensions, of numbers of four or eight bytes."""
    bits = values.view(np.uint64 if values.itemsize == 8 else np.uint32)
    if bits.flags.c_contiguous:
        lines = [bits.reshape(-1)]
    elif bits.flags.f_contiguous:
        lines = [bits.T.reshape(-1)]
    else:
        lines = [bits] if bits.ndim == 1 else list(bits.T)
    found = []
    for line in lines:
        whole = len(line) // (BLOCK * APART) * (BLOCK * APART)
        blocks = line[:whole].reshape(-1, APART, BLOCK)[:, 0]
        found += [np.add.reduce(blocks, axis=0, dtype=np.uint64), line[whole : whole + BLOCK].astype(np.uint64)]
    return found


def constant(values: Any) -> bool:
    """Whether nobody can change an array: neither it nor what it is a view of can be written to."""
    while isinstance(values, np.ndarray):
        if values.flags.writeable:
            return False
        values = values.base
    return values is None or isinstance(values, mmap.mmap)

"""Covariance parameters: theta <-> Lambda <-> G.

For one grouping factor with q random effects, G = sigma^2 Lambda Lambda' with Lambda lower
triangular.  `theta` holds the free elements of Lambda, column by column within each block, as
lme4 does (Bates et al. 2015, J. Stat. Softw. 67(1), sec. 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels import lower_factor
from ..support.types import Array

__all__ = [
    "FREE",
    "INDEPENDENT",
    "Block",
    "CovarianceStructure",
    "one_block",
    "vech_positions",
]


INDEPENDENT = ("diagonal", "id")
"""Structures of blocks whose effects are independent of each other."""

FREE = ("full", "diagonal")
"""Structures of blocks all of whose variances, and covariances if any, are free; others are in `effects`."""


class Block(NamedTuple):
    """Consecutive random effects of one term: correlated (full) or independent (diagonal), or with a structure."""

    start: int
    stop: int
    structure: str

    @property
    def correlated(self) -> bool:
        """Whether its effects are correlated."""
        return self.structure not in INDEPENDENT


@lru_cache(maxsize=64)
def _free_positions(blocks: tuple[Block, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows: list[int] = []
    columns: list[int] = []
    for block in blocks:
        for column in range(block.start, block.stop):
            last = block.stop if block.correlated else column + 1
            rows.extend(range(column, last))
            columns.extend([column] * (last - column))
    return np.array(rows, dtype=np.intp), np.array(columns, dtype=np.intp)


@dataclass(frozen=True)
class CovarianceStructure:
    """Which elements of Lambda are free.

    Parameters
    ----------
    blocks : tuple of Block
        In order, covering all random effects; different blocks are independent.
    """

    blocks: tuple[Block, ...]

    @cached_property
    def q(self) -> int:
        """Number of random effects per group."""
        return self.blocks[-1].stop if self.blocks else 0

    @cached_property
    def positions(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the free elements."""
        return _free_positions(self.blocks)

    @cached_property
    def restricted(self) -> bool:
        """Whether the elements of some block are functions of fewer parameters."""
        return any(block.structure not in FREE for block in self.blocks)

    @cached_property
    def n_parameters(self) -> int:
        """Number of free elements."""
        return len(self.positions[0])

    @cached_property
    def widest(self) -> int:
        """Effects of the largest block of correlated ones."""
        return max((b.stop - b.start for b in self.blocks if b.correlated), default=1)

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """Which elements of G are free (q, q)."""
        rows, columns = self.positions
        out = np.zeros((self.q, self.q), dtype=bool)
        out[rows, columns] = out[columns, rows] = True
        return out

    @cached_property
    def one_full(self) -> bool:
        """Whether there is one block only, of correlated effects."""
        return len(self.blocks) == 1 and self.blocks[0].correlated

    @cached_property
    def flat(self) -> NDArray[np.intp]:
        """`positions` in the flattened matrix."""
        rows, columns = self.positions
        return rows * self.q + columns

    def factor(self, theta: Array) -> Array:
        """Lambda (q, q) from theta."""
        out = np.zeros(self.q * self.q)
        out[self.flat] = theta
        return out.reshape(self.q, self.q)

    def factors(self, thetas: Array) -> Array:
        """Lambda (n, q, q) from a stack of theta (n, n_parameters)."""
        out = np.zeros((len(thetas), self.q * self.q))
        out[:, self.flat] = thetas
        return out.reshape(-1, self.q, self.q)

    def theta(self, factor: Array) -> Array:
        """Theta from Lambda."""
        return factor.take(self.flat)

    def canonical(self, factor: Array) -> Array:
        """Lower triangular Lambda of this structure, non-negative diagonal, with the same G as `factor`.

        Parameters
        ----------
        factor : (q, q) array
            Any square factor of G that is block diagonal like G.
        """
        if self.one_full:
            return lower_factor(factor)
        out = np.zeros((self.q, self.q))
        for block in self.blocks:
            part = slice(block.start, block.stop)
            inner = factor[part, part]
            out[part, part] = np.diag(np.linalg.norm(inner, axis=1)) if not block.correlated else lower_factor(inner)
        return out

    def natural(self, z_map: Array, factor: Array, negligible: Array | None = None) -> Array:
        """Canonical Lambda in natural units.

        Parameters
        ----------
        z_map : (q, q) array
            b = z_map b_o.
        factor : (q, q) array, or stack of them
            Lambda of b_o.
        negligible : (q,) array, optional
            A standard deviation below this, in units of sigma and of the rows of z_map, becomes exactly zero.
        """
        turned = z_map @ factor
        if negligible is not None:
            zero = np.linalg.norm(turned, axis=-1) <= negligible * np.linalg.norm(z_map, axis=-1)
            turned = np.where(zero[..., None], 0.0, turned)
        return self.canonical(turned) if turned.ndim == 2 else self.canonical_many(turned)

    def canonical_many(self, factors: Array) -> Array:
        """`canonical` for a stack of factors (n, q, q)."""
        out = np.zeros_like(factors)
        for block in self.blocks:
            part = slice(block.start, block.stop)
            inner = factors[:, part, part]
            size = block.stop - block.start
            if not block.correlated:
                out[:, range(block.start, block.stop), range(block.start, block.stop)] = np.linalg.norm(inner, axis=2)
                continue
            work = inner.copy()
            for i in range(size):
                for j in range(i + 1, size):
                    length = np.hypot(work[:, i, i], work[:, i, j])
                    safe = np.where(length > 0.0, length, 1.0)
                    c = np.where(length > 0.0, work[:, i, i] / safe, 1.0)[:, None]
                    s = (work[:, i, j] / safe)[:, None]
                    left = work[:, :, i].copy()
                    work[:, :, i] = c * left + s * work[:, :, j]
                    work[:, :, j] = c * work[:, :, j] - s * left
                    work[:, i, j] = 0.0
            sign = np.where(np.diagonal(work, axis1=1, axis2=2) < 0.0, -1.0, 1.0)
            out[:, part, part] = np.tril(work * sign[:, None, :])
            # a row without a pivot makes the triangle ambiguous: rare, and settled one by one
            pivots = np.diagonal(out[:, part, part], axis1=1, axis2=2)
            loose = (pivots == 0.0) & (np.abs(out[:, part, part]).sum(axis=1) > 0.0)
            for k in np.flatnonzero(loose.any(axis=1)):
                out[k, part, part] = lower_factor(inner[k])
        return out


@lru_cache(maxsize=64)
def one_block(q: int, structure: str) -> CovarianceStructure:
    """The structure of one term of q effects; made once, as its positions are."""
    return CovarianceStructure((Block(0, q, structure),))


def vech_positions(q: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the lower triangle by rows: the order in which the kernels give derivatives in G."""
    return np.tril_indices(q)

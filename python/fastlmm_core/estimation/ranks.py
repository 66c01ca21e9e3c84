"""Other minima by the rank of G^: searches within every rank, until a lower one can hardly be left.

Where few groups tell unalike of three effects or more, the lowest minimum often lies on the boundary.  Among all
matrices its basin may then be so narrow that one search in 300 ends there, while among those of its own rank half of
them do.  Searches start from points spread over the matrices of each rank, as many from each, until the lowest minimum
has been found `TIMES` times, and the chance that one more search would end lower is slight.  The share of searches that
would end at a minimum not seen yet is, by Good (1953), Biometrika 40, 237-264, that of the searches that have ended
where no other one has; and as any of w + 1 minima may be the lowest, that one is with a chance of 1 / (w + 1).  On such
rules see Boender and Rinnooy Kan (1987), Math. Program. 37, 59-80.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf, isfinite
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np

from ..kernels import minimize_newton
from ..support.types import Array
from .search import FARTHEST, ITERATIONS, TOLERANCE, VANISHING, Found, is_known, primes

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from ..engines.protocol import LinearEngine

__all__ = ["Seen", "by_rank", "points_of_rank", "seen"]


ROUND, ROUNDS = 8, 9
"""Searches within each rank between looks at what they have found, and such rounds at most."""

TIMES = 3
"""Searches that must have ended at the lowest minimum."""

LOWER = 0.01
"""Chance that one more search would end lower, below which no more are made."""

EQUAL = 1e-5
"""Units by which the ends of two searches for one minimum may differ."""


class OfRanks(Protocol):
    """A criterion that can be had as one of matrices of low rank."""

    def of_rank(self, rank: int) -> LinearEngine:
        """The criterion as a function of L with so many columns."""


class Seen(NamedTuple):
    """What searches tell: how many ended at the lowest minimum, and the chance that one more would end lower."""

    times: int
    below: float

    @property
    def enough(self) -> bool:
        """Whether nothing lower is to be expected."""
        return self.times >= TIMES and self.below <= LOWER


def by_rank(criterion: LinearEngine, structure: CovarianceStructure, unit: Array, found: Found) -> Found:
    """What a search has found, with the minima of all ranks.

    Parameters
    ----------
    criterion : LinearEngine
        Of one block of correlated effects.
    structure : CovarianceStructure
    unit : (q,) array
        See `search`.
    found : Found
        By a search among all matrices.
    """
    q = structure.q
    engines = [cast("OfRanks", criterion).of_rank(rank) for rank in range(1, q + 1)]
    minima, ends = list(found.minima), []
    evaluations = criterion.n_evaluations
    for begin in range(0, ROUND * ROUNDS, ROUND):
        for rank, engine in enumerate(engines, start=1):
            for start in points_of_rank(q, rank)[begin : begin + ROUND]:
                end = _end(engine, structure, rank, unit, start)
                ends.append(inf if end is None else end[0])
                if end is not None and not is_known(minima, structure, unit, end):
                    minima.append(end)
        now = seen(np.array(ends), found.ends)
        if now.enough:
            break
    criterion.n_evaluations = evaluations + sum(engine.n_evaluations for engine in engines)
    doubt = "" if now.enough else _doubt(now, len(ends) + len(found.ends))
    return found._replace(minima=sorted(minima, key=lambda minimum: minimum[0]), ends=np.array(ends), doubt=doubt)


def seen(ends: Array, others: Array) -> Seen:
    """What searches from points spread over all ranks tell, and others, by the values where they ended."""
    lowest = min(float(ends.min()), float(others.min()))
    if not isfinite(lowest):
        return Seen(0, 1.0)
    ordered = np.sort(ends[np.isfinite(ends)])
    first = np.flatnonzero(np.diff(ordered, prepend=-inf) > EQUAL)
    counts = np.diff(first, append=len(ordered))
    once = int((counts == 1).sum()) / len(ends)
    times = int((ends <= lowest + EQUAL).sum() + (others <= lowest + EQUAL).sum())
    return Seen(times, once / (len(counts) + 1.0))


def _end(
    engine: LinearEngine, structure: CovarianceStructure, rank: int, unit: Array, start: Array
) -> tuple[float, Array] | None:
    """Value and theta where a search within a rank ends, None where the criterion is not defined."""
    rows, columns = np.tril_indices(structure.q, 0, rank)
    try:
        x, _, _, value, *_ = minimize_newton(engine, start * unit[rows], TOLERANCE, ITERATIONS)
    except FloatingPointError:
        return None
    if not isfinite(value):
        return None
    factor = np.zeros((structure.q, structure.q))
    factor[rows, columns] = x
    return value, structure.theta(structure.canonical(factor))


@lru_cache(maxsize=64)
def points_of_rank(q: int, rank: int) -> Array:
    """Free elements of L (q, rank) where the searches start (ROUND * ROUNDS, n_par).

    Multiples of square roots of primes are spread evenly: principal standard deviations on a logarithmic scale, and
    axes by way of normal deviates (Box and Muller).
    """
    count, pairs = ROUND * ROUNDS, -(-q * rank // 2)
    steps = np.sqrt(np.array(primes(rank + 2 * pairs), dtype=np.float64))
    place = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0
    sizes = VANISHING * (FARTHEST / VANISHING) ** place[:, :rank]
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - place[:, rank::2])), 2.0 * np.pi * place[:, rank + 1 :: 2]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, : q * rank]
    axes = np.linalg.qr(normal.reshape(count, q, rank))[0]
    # L with L L' = B B', B the axes times their sizes: B' = Q L'
    lower = np.linalg.qr((axes * sizes[:, None]).transpose(0, 2, 1))[1].transpose(0, 2, 1)
    out = np.ascontiguousarray(lower[:, *np.tril_indices(q, 0, rank)])
    out.setflags(write=False)
    return out


def _doubt(now: Seen, count: int) -> str:
    """Why a minimum is not certified to be the lowest."""
    return (
        f"not certified: of {count} searches from other starts {now.times} ended at this minimum, and one more would "
        f"end at a lower one with a chance of {now.below:.1%}: lower minima cannot be excluded"
    )

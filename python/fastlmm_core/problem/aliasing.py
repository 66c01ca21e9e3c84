"""Random effects that the fixed effects explain at every level: their variances cannot be estimated.

With Q the projector on what the columns of X leave, REML sees a direction v of the random effects of a factor through
the columns Q Z_a v of its levels a only.  Where all of them vanish, the restricted likelihood does not depend on the
variance along v, and the full likelihood has its maximum at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import Block, CovarianceStructure
from ..errors import LMMError
from ..support.types import Array
from .columns import RANK_TOLERANCE

__all__ = ["default_names", "refuse_aliased", "suspects", "term_text"]


SUSPECT = 1e-8
"""Share of Z'Z left by X, from cross-products, below which the rows are looked at."""

DRAWS = 4
"""Random combinations of the levels that are looked at."""


def suspects(crossed: Array, n: int, structure: CovarianceStructure) -> list[tuple[Block, Array]]:
    """Directions of the random effects of one factor that X explains at every level, as far as sums of products tell.

    Parameters
    ----------
    crossed : (m, q, r) array
        Z_a'X_o of each level; X_o orthonormal, Z conditioned (Z'Z = n I, for independent effects the diagonal of it).
    n : int
    structure : CovarianceStructure
        Of this factor.

    Returns
    -------
    list of (block, (width, d) array)
        The directions in each block that has any.
    """
    # explained along v: no more than in all directions together
    if not np.vdot(crossed, crossed) > (1.0 - SUSPECT) * n:
        return []
    flat = crossed.transpose(1, 0, 2).reshape(structure.q, -1)
    rest = np.eye(structure.q) - flat @ flat.T / n
    found: list[tuple[Block, Array]] = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        own = rest[part, part]
        values, vectors = np.linalg.eigh(own) if block.correlated else (own.diagonal(), np.eye(len(own)))
        small = values < SUSPECT
        if small.any():
            found.append((block, vectors[:, small]))
    return found


def refuse_aliased(
    found: list[tuple[Block, Array]],
    Z: Array,
    X: Array,
    codes: NDArray[Any],
    z_map: Array,
    natural: Array,
    name: str,
    columns: Sequence[str],
) -> None:
    """Refuse the directions that X explains indeed, summed over the rows.

    Parameters
    ----------
    found : list
        From `suspects`.
    Z : (n, q) array
        Conditioned columns of the factor, weighted.
    X : (n, r) array
        X_o, weighted; orthonormal.
    codes : (n,) int array
        Level of each row, from 0 or another small number.
    z_map : (q, q) array
        b = z_map b_o.
    natural : (n, q) array
        Columns of the factor as they were given.
    name : str
        Of the factor.
    columns : sequence of str
        Names of the columns of the factor.

    Raises
    ------
    LMMError
        Names the term, the random effects and the remedy.
    """
    codes = codes - codes.min()
    # a combination of the levels with random weights is explained only if all of them are
    weights = np.random.default_rng(0).standard_normal((int(codes.max()) + 1, DRAWS))[codes]
    for block, directions in found:
        part = slice(block.start, block.stop)
        aliased = []
        for v in directions.T:
            drawn = weights * (Z[:, part] @ v)[:, None]
            before = np.sum(drawn**2)
            for _ in range(2):
                drawn -= X @ (X.T @ drawn)
            if np.sum(drawn**2) <= RANK_TOLERANCE**2 * before:
                aliased.append(v)
        if aliased:
            size = np.linalg.norm(natural[:, part], axis=0)
            effects, each = _effects(size[:, None] * (z_map[part, part] @ np.array(aliased).T))
            raise LMMError(_message(name, list(columns[part]), block.structure, effects, each))


def _effects(directions: Array) -> tuple[list[int], bool]:
    """The columns that take part in the directions (width, d), and whether each of them is explained by itself."""
    basis = np.linalg.qr(directions)[0]
    share = np.sum(basis**2, axis=1)
    found = np.flatnonzero(share > 1e-6)
    return found.tolist(), len(found) == directions.shape[1]


def _message(name: str, columns: list[str], structure: str, effects: list[int], each: bool) -> str:
    which = " and ".join(repr(columns[j]) for j in effects)
    rest = [column for j, column in enumerate(columns) if j not in effects]
    if not each:
        subject, remedy = f"a combination of the random effects {which} is", "leave one of them out"
    elif rest:
        subject = f"the random effect {which} is" if len(effects) == 1 else f"the random effects {which} are"
        remedy = f"write {term_text(rest, structure, name)} for it"
    else:
        subject = "the random effect is" if len(columns) == 1 else "its random effects are"
        remedy = "leave the term out"
    term = term_text(columns, structure, name)
    return (
        f"{term}: {subject} explained by the fixed effects at every level of {name!r}, so "
        f"that no observation tells the variance; {remedy}, or leave what tells the levels of {name!r} apart out of "
        "the fixed effects"
    )


def term_text(columns: list[str], structure: str, name: str) -> str:
    """A term as formulas have it."""
    bar = "||" if structure != "full" and len(columns) > 1 else "|"
    others = [column for column in columns if column != "Intercept"]
    if "Intercept" not in columns:
        others.insert(0, "0")
    return f"({' + '.join(others or ['1'])} {bar} {name})"


def default_names(Z: Array) -> tuple[str, ...]:
    """Names for columns that have none."""
    ones = (Z == 1.0).all(axis=0)
    return tuple("Intercept" if one else f"column {j} of Z" for j, one in enumerate(ones))

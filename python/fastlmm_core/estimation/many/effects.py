"""BLUPs of problems with designs of their own: those of the lanes together, of others by their single fits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array
from .flat_rows import FlatRows
from .stack_fit import StackFit

__all__ = ["GroupEffects", "group_effects"]

PART = 256
"""Problems whose rows are held together."""


class GroupEffects(NamedTuple):
    """BLUPs of the groups of some problems, by one grouping factor.

    Attributes
    ----------
    problem : (k,) int array
        Place of the problem among those that were asked for.
    level : (k,) int array
        The group: its position among the levels of all problems.
    effects : (k, q) array
    """

    problem: NDArray[np.intp]
    level: NDArray[np.intp]
    effects: Array


def group_effects(fits: StackFit, chosen: NDArray[np.intp]) -> list[GroupEffects]:
    """BLUPs of the groups that some problems have, sorted by problem and level, for each grouping factor.

    Parameters
    ----------
    fits : StackFit
    chosen : int array
        Positions; of those that could not be fitted there are none.
    """
    design = fits.stack.design
    found: list[list[GroupEffects]] = [
        [GroupEffects(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp), np.zeros((0, f.stop - f.start)))]
        for f in design.factors
    ]
    lanes = np.flatnonzero(fits.by_lanes[chosen] == 1)
    for begin in range(0, len(lanes), PART):
        part = lanes[begin : begin + PART]
        flat = fits.stack.flat(chosen[part])
        first = np.flatnonzero(np.diff(flat.group, prepend=-1))
        level = design.factors[0].grouping.index[flat.row[first]]
        owner = flat.problem[first]
        found[0].append(GroupEffects(part[owner], level, _effects(fits, chosen[part], flat, owner)))
    for place in np.flatnonzero((fits.by_lanes[chosen] == 0) & (fits.status[chosen] >= 0)).tolist():
        one = fits.one(int(chosen[place]))
        for into, whole, own, effects in zip(found, design.factors, one.model.factors, one.blups, strict=True):
            level = whole.grouping.locate(own.grouping.labels)
            into.append(GroupEffects(np.full(len(level), place, dtype=np.intp), level, effects))
    return [_sorted(parts) for parts in found]


def _sorted(parts: list[GroupEffects]) -> GroupEffects:
    problem, level, effects = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.lexsort((level, problem))
    return GroupEffects(problem[order], level[order], effects[order])


def _effects(fits: StackFit, which: NDArray[np.intp], flat: FlatRows, owner: NDArray[np.intp]) -> Array:
    """b = L (I + L'A L)^-1 L' Z'W (y - X beta) of each group of an `owner`, in conditioned coordinates and back."""
    turn = fits.z_maps[which]
    factor = np.linalg.solve(turn, fits.relative_factor[which])
    z = np.einsum("ni,nij->nj", flat.Z, turn[flat.problem])
    rest = flat.y - np.einsum("ni,ni->n", flat.X, np.nan_to_num(fits.params[which])[flat.problem])
    if flat.offset is not None:
        rest -= flat.offset
    weighted = z if flat.weights is None else z * flat.weights[:, None]
    gram = flat.group_sums((weighted[:, :, None] * z[:, None, :]).transpose(1, 2, 0)).transpose(2, 0, 1)
    cross = flat.group_sums((rest[:, None] * weighted).T).T
    own = factor[owner]
    turned = own.transpose(0, 2, 1)
    spherical = np.linalg.solve(np.eye(z.shape[1]) + turned @ gram @ own, turned @ cross[..., None])
    return np.asarray((turn[owner] @ (own @ spherical))[..., 0])

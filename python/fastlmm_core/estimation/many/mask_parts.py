"""Parts of responses with missing observations, and several put together: masks, and what is scattered among many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.types import Array, Index
from .batch_fit import BatchFit
from .masks import Masked
from .parts import part_of, with_responses
from .stack_fit import StackFit, joined_stacks, part_of_stack

__all__ = ["fits_of", "joined_masks", "masks_with_responses", "some_masks"]

B = TypeVar("B", bound=BatchFit)
S = TypeVar("S", bound=StackFit)


def fits_of(masks: Sequence[Masked[B]], scattered: tuple[Index, S] | None) -> tuple[Index, Index]:
    """The mask of each response, -1 for those that are scattered, and its place among the fits there (n_responses,).

    Parameters
    ----------
    masks : sequence of Masked
    scattered : (int array, StackFit) or None
        Positions of other responses, and their fits.
    """
    count = sum(len(mask.members) for mask in masks) + (0 if scattered is None else len(scattered[0]))
    owner, place = np.empty(count, dtype=np.intp), np.empty(count, dtype=np.intp)
    for k, mask in enumerate(masks):
        owner[mask.members], place[mask.members] = k, np.arange(len(mask.members))
    if scattered is not None:
        owner[scattered[0]], place[scattered[0]] = -1, np.arange(len(scattered[0]))
    return owner, place


def some_masks(
    masks: Sequence[Masked[B]], scattered: tuple[Index, S] | None, chosen: Index
) -> tuple[list[Masked[B]], tuple[Index, S] | None]:
    """Some of the responses.

    Parameters
    ----------
    masks, scattered
        As for `fits_of`.
    chosen : int array
        Positions of the responses.
    """
    owner, place = (whole[chosen] for whole in fits_of(masks, scattered))
    out = []
    for k, mask in enumerate(masks):
        members = np.flatnonzero(owner == k)
        if len(members):
            own = None if mask.batch is None else part_of(mask.batch, place[members])
            out.append(Masked(mask.rows, members, own, mask.reason))
    members = np.flatnonzero(owner < 0)
    left = None if scattered is None or not len(members) else (members, part_of_stack(scattered[1], place[members]))
    return out, left


def joined_masks(
    parts: Iterable[tuple[Sequence[Masked[B]], tuple[Index, S] | None]],
) -> tuple[list[Masked[B]], tuple[Index, S] | None]:
    """The responses of several, one after the other.

    Parameters
    ----------
    parts : iterable of (masks, scattered)
        As for `fits_of`.
    """
    out: list[Masked[B]] = []
    left: list[Index] = []
    fits: list[S] = []
    begin = 0
    for masks, scattered in parts:
        out += [mask._replace(members=mask.members + begin) for mask in masks]
        if scattered is not None:
            left.append(scattered[0] + begin)
            fits.append(scattered[1])
        begin += len(fits_of(masks, scattered)[0])
    return out, (np.concatenate(left), joined_stacks(fits)) if fits else None


def masks_with_responses(masks: Sequence[Masked[B]], responses: Array) -> list[Masked[B]]:
    """The masks with their responses, where they are gone.

    Parameters
    ----------
    masks : sequence of Masked
    responses : (n_responses, nobs) array
        What was fitted, NaN where it is missing.

    Raises
    ------
    LMMError
        For other missing values; for other numbers when they are used.
    """
    missing: NDArray[np.bool_] = np.isnan(responses)
    out: list[Any] = []
    for mask in masks:
        there = np.ones(responses.shape[1], dtype=bool)
        there[mask.rows] = False
        other = (missing[mask.members] != there).any(axis=1)
        if other.any():
            raise LMMError(
                f"Y has other missing values than what was fitted (first: response {mask.members[other][0]})"
            )
        if mask.batch is not None:
            own = np.take(responses[mask.members], mask.rows, axis=1)
            mask = mask._replace(batch=with_responses(mask.batch, own))
        out.append(mask)
    return out

"""What marginal means and slopes are averaged over, where covariates stand, and which interactions are involved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...formula.coding import FixedTerm, fixed_terms

if TYPE_CHECKING:
    from .grid import ReferenceGrid

__all__ = ["conditions_of"]

_WEIGHTED = {
    "equal": "with equal weights",
    "proportional": "in proportion to the rows of all data",
    "cells": "in proportion to the rows of each mean",
    "flat": "with equal weights of the combinations that have rows",
}


def conditions_of(grid: ReferenceGrid, names: Sequence[str], along: str | None) -> tuple[str, ...]:
    """Notes that say what the rows of a table of means or slopes do not.

    Parameters
    ----------
    grid : ReferenceGrid
    names : sequence of str
        Variables whose combinations make the rows.
    along : str or None
        The variable of slopes.
    """
    terms = fixed_terms(grid.model.design)
    if along is not None:  # of the terms without it the slope does not depend
        terms = tuple(term for term in terms if along in term.variables)
    used = dict.fromkeys(name for name in grid.variables if _enters(name, terms, along))
    others = [name for name in used if name not in names]
    averaged = [name for name in others if len(grid.levels.get(name, ())) > 1]
    single = {name: grid.levels[name][0] for name in others if len(grid.levels.get(name, ())) == 1}
    means = [f"{name} = {grid.means[name]:.4g} (mean)" for name in others if name in grid.means]
    notes = [] if along is None or not names else [f"Slopes along {along}."]
    if averaged:
        notes.append(f"Averaged over {', '.join(averaged)}, {_WEIGHTED[grid.weights]}.")
    if means or single:
        given = [
            f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
            for name, value in single.items()
        ]
        notes.append(f"At {', '.join([*means, *given])}.")
    notes += _interactions(terms, names, along, others)
    return tuple(notes)


def _enters(name: str, terms: Sequence[FixedTerm], along: str | None) -> bool:
    """Whether means, or the slope along a variable, depend on the value of a variable."""
    if name != along:
        return any(name in term.variables for term in terms)
    # of a straight line the slope is everywhere the same
    return any(expression != name and name in expression for term in terms for expression in term.numeric)


def _interactions(
    terms: Sequence[FixedTerm], names: Sequence[str], along: str | None, others: Sequence[str]
) -> Iterator[str]:
    """A note on each variable of the rows that is in an interaction with others than these."""
    for name in names if along is None else [along]:
        partners = dict.fromkeys(
            other
            for term in terms
            if name in term.variables
            for other in others
            if other in term.variables and other != name
        )
        if partners:
            what = "means and their differences" if along is None else "slopes"
            it = "it" if len(partners) == 1 else "them"
            yield f"Interaction of {name} with {', '.join(partners)}: {what} depend on {it}."

"""Random-effects terms: from the terms of a model to its grouping factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import float_array
from .errors import LMMError
from .grouping import Factor, Grouping, group_codes
from .parameters import Block, CovarianceStructure

__all__ = ["RandomPart", "RandomTerm", "Term", "random_part", "terms_of_arrays"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RandomTerm:
    """A random-effects term from arrays: the columns `Z` vary between the levels of `groups`.

    Parameters
    ----------
    Z : (n, q) array or None
        Columns of the random effects; None means a random intercept.
    groups : (n,) array
        Level of each row: integers, strings or any sortable labels, in any order.
    name : str, optional
        Of the grouping factor.  Terms of the same name share their factor.
    structure : {"full", "diagonal"}
        Covariance of the random effects of a level: unrestricted or independent.
    exog_names : sequence of str, optional
        Names of the columns of Z.
    """

    Z: ArrayLike | None
    groups: Any
    name: str | None = None
    structure: Literal["full", "diagonal"] = "full"
    exog_names: Sequence[str] | None = None


class Term(NamedTuple):
    """A term whose input has been checked."""

    name: str
    grouping: Grouping
    Z: Array
    columns: tuple[str, ...]
    structure: str


class RandomPart(NamedTuple):
    """The random part of a model.

    Attributes
    ----------
    Z : (n, q) array
        The columns of all terms, those of one grouping factor side by side.
    factors : tuple of Factor
        Those with most levels first (the order of lme4).
    structure : CovarianceStructure
        One block per term.
    columns : (q,) tuple of str
    term_names : tuple of str
        One per block: the grouping factor, numbered where a factor has several terms.
    order : tuple of int
        Position of each term among those given.
    """

    Z: Array
    factors: tuple[Factor, ...]
    structure: CovarianceStructure
    columns: tuple[str, ...]
    term_names: tuple[str, ...]
    order: tuple[int, ...]


def terms_of_arrays(terms: Sequence[RandomTerm], n: int) -> list[Term]:
    """Check the terms that a caller gave as arrays.

    Raises
    ------
    LMMError
        For arrays of the wrong shape, or terms of one name with different groups.
    """
    found: list[Term] = []
    known: dict[str, Grouping] = {}
    for i, term in enumerate(terms):
        if not isinstance(term, RandomTerm):
            raise LMMError(f"terms[{i}] is of type {type(term).__name__!r}; give RandomTerm(Z, groups, name=...)")
        name = f"group{i + 1}" if term.name is None else str(term.name)
        if term.structure not in ("full", "diagonal"):
            raise LMMError(f"terms[{i}]: structure={term.structure!r} is unknown: use 'full' or 'diagonal'")
        Z = np.ones((n, 1)) if term.Z is None else float_array(term.Z, f"terms[{i}].Z", 2)
        if Z.shape[1] == 0:
            raise LMMError(f"terms[{i}].Z has no columns: give at least one random effect, or None for an intercept")
        grouping = group_codes(term.groups, name)
        for argument, values in (("Z", Z), ("groups", grouping.codes)):
            if len(values) != n:
                raise LMMError(f"terms[{i}].{argument} has {len(values)} rows but y has {n}; give one per observation")
        if name in known:
            if not np.array_equal(known[name].labels[known[name].index], grouping.labels[grouping.index]):
                raise LMMError(f"terms[{i}] has the name {name!r} of an earlier term but other groups; rename it")
            grouping = known[name]
        known[name] = grouping
        if term.exog_names is None:
            columns = ("Intercept",) if term.Z is None else tuple(f"z{j}" for j in range(Z.shape[1]))
        else:
            columns = tuple(map(str, term.exog_names))
            if len(columns) != Z.shape[1]:
                raise LMMError(f"terms[{i}].exog_names has {len(columns)} names for {Z.shape[1]} columns")
        found.append(Term(name, grouping, Z, columns, term.structure))
    if not found:
        raise LMMError("terms is empty: give at least one RandomTerm")
    return found


def random_part(terms: Sequence[Term]) -> RandomPart:
    """Put the terms of each grouping factor side by side."""
    names = list(dict.fromkeys(term.name for term in terms))
    if len(names) > 1:
        groupings = {term.name: _dense(term.grouping) for term in terms}
        names.sort(key=lambda name: -groupings[name].n_slots)
    else:
        groupings = {terms[0].name: terms[0].grouping}
    blocks: list[Block] = []
    factors: list[Factor] = []
    labels: list[str] = []
    order: list[int] = []
    start = 0
    for name in names:
        first = start
        for number, i in enumerate(i for i, term in enumerate(terms) if term.name == name):
            stop = start + terms[i].Z.shape[1]
            blocks.append(Block(start, stop, terms[i].structure))
            labels.append(f"{name}.{number}" if number else name)
            order.append(i)
            start = stop
        factors.append(Factor(groupings[name], first, start))
    columns = [terms[i].Z for i in order]
    return RandomPart(
        columns[0] if len(columns) == 1 else np.column_stack(columns),
        tuple(factors),
        CovarianceStructure(tuple(blocks)),
        tuple(column for i in order for column in terms[i].columns),
        tuple(labels),
        tuple(order),
    )


def _dense(grouping: Grouping) -> Grouping:
    """The same factor without unused slots."""
    counts = np.bincount(np.asarray(grouping.codes, dtype=np.intp) - grouping.base, minlength=grouping.n_slots)
    if grouping.present is None and not counts.all():
        grouping.present = np.flatnonzero(counts)
    return Grouping(grouping.name, grouping.index, 0, len(grouping.labels), grouping.labels)

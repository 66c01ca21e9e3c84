"""Random-effects terms: from the terms of a model to its grouping factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..covariance.effects.names import EFFECTS, named
from ..covariance.elements import Element, elements
from ..covariance.parameters import FREE, INDEPENDENT, Block, CovarianceStructure
from ..errors import LMMError
from ..support.arguments import checked
from ..support.checks import float_array, sum_is_finite
from ..support.records import at_once
from ..support.seals import own
from ..support.types import Array
from .grouping import Codes, group_codes

__all__ = [
    "NamedTerm", "RandomPart", "RandomTerm", "Term", "no_random_part", "random_part", "side_by_side", "terms_of_arrays",
]  # fmt: skip


SAMPLE = 256
"""Rows that are looked at first where columns may be dependent, or two terms or factors the same."""

TOLERANCE = 1e-7
"""A unit vector with no more than this outside a space belongs to it (as for columns of X that are dropped)."""

EXACT = 1e-11
"""What rounding may leave of a dependent unit vector; what is nearly dependent is left to the engines."""


@checked
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
    structure : str
        Covariance of the random effects of a level: ``"full"`` or ``"diagonal"``, or restricted: ``"cs"``, ``"ar1"``,
        ``"toep"``, ``"ad"``, ``"fa0"`` and others that formulas know, over the columns in their order.
    exog_names : sequence of str, optional
        Names of the columns of Z.
    hom : bool, optional
        For ``"diag"``, ``"cs"`` and ``"ar1"``: one variance for all effects. By default as in lme4: ``"ar1"`` only.
    rank : int, optional
        Of ``"fa0"``: the number of combinations of the effects that vary, 1 by default.
    """

    Z: ArrayLike | None
    groups: Any
    name: str | None = None
    structure: str = "full"
    exog_names: Sequence[str] | None = None
    hom: bool | None = None
    rank: int | None = None


class Term(NamedTuple):
    """A term whose input has been checked."""

    name: str
    codes: Codes
    Z: Array
    columns: tuple[str, ...]
    structure: str

    @property
    def correlated(self) -> bool:
        """Whether its effects are correlated."""
        return self.structure not in INDEPENDENT


@at_once
@dataclass(frozen=True)
class RandomPart:
    """The random part of a model.

    Attributes
    ----------
    parts : tuple of (n, q_t) arrays
        The columns of each term, those of one grouping factor one after the other.
    codes : tuple of Codes
        Of each grouping factor, those with most levels first (the order of lme4).  Of several factors all slots occur.
    spans : tuple of slice
        The columns of each grouping factor.
    structure : CovarianceStructure
        One block per term.
    columns : (q,) tuple of str
    term_names : tuple of str
        One per block: the grouping factor, numbered where a factor has several terms.
    order : tuple of int
        Position of each term among those given.
    """

    parts: tuple[Array, ...]
    codes: tuple[Codes, ...]
    spans: tuple[slice, ...]
    structure: CovarianceStructure
    columns: tuple[str, ...]
    term_names: tuple[str, ...]
    order: tuple[int, ...]

    @cached_property
    def elements(self) -> tuple[Element, ...]:
        """The free elements of the covariance matrices, in the order of theta, with their names."""
        return elements(self.structure, self.columns, self.term_names)

    @cached_property
    def effect_names(self) -> tuple[str, ...]:
        """Names of the random effects, with their terms where one factor has two of a name."""
        names = self.columns
        if all(len(set(names[span])) == span.stop - span.start for span in self.spans):
            return names
        return tuple(
            f"{names[i]} ({term})"
            for term, block in zip(self.term_names, self.structure.blocks, strict=True)
            for i in range(block.start, block.stop)
        )

    @cached_property
    def Z(self) -> Array:
        """The columns of all terms (n, q)."""
        return self.parts[0] if len(self.parts) == 1 else np.column_stack(self.parts)

    def columns_of(self, span: slice) -> Array:
        """The columns of one grouping factor; nothing is copied where it has one term."""
        at = 0
        for part in self.parts:
            if (at, at + part.shape[1]) == (span.start, span.stop):
                return part
            at += part.shape[1]
        return self.Z[:, span]


def terms_of_arrays(terms: Sequence[RandomTerm], n: int) -> list[Term]:
    """Check the terms that a caller gave as arrays.

    Raises
    ------
    LMMError
        For arrays of the wrong shape or with values that are not finite, or terms of one name with different groups.
    """
    found: list[Term] = []
    known: dict[str, Codes] = {}
    if not isinstance(terms, Sequence):
        raise LMMError(f"terms is of type {type(terms).__name__!r}; give a list of RandomTerm(Z, groups, name=...)")
    for i, term in enumerate(terms):
        if not isinstance(term, RandomTerm):
            raise LMMError(f"terms[{i}] is of type {type(term).__name__!r}; give RandomTerm(Z, groups, name=...)")
        name = f"group{i + 1}" if term.name is None else str(term.name)
        Z = np.ones((n, 1)) if term.Z is None else own(float_array(term.Z, f"terms[{i}].Z", 2))
        if Z.shape[1] == 0:
            raise LMMError(f"terms[{i}].Z has no columns: give at least one random effect, or None for an intercept")
        if not (sum_is_finite(Z) or np.isfinite(Z).all()):
            row, column = np.argwhere(~np.isfinite(Z))[0].tolist()
            raise LMMError(
                f"terms[{i}].Z has values that are not finite (first: {Z[row, column]} at row {row}, column {column}); "
                "remove or impute these rows before fitting"
            )
        try:
            codes = group_codes(term.groups, name)
        except LMMError as error:
            raise LMMError(f"terms[{i}]: {error}") from error
        for argument, values in (("Z", Z), ("groups", codes.codes)):
            if len(values) != n:
                raise LMMError(f"terms[{i}].{argument} has {len(values)} rows but y has {n}; give one per observation")
        if name in known:
            if not known[name].agrees(codes):
                raise LMMError(f"terms[{i}] has the name {name!r} of an earlier term but other groups; rename it")
            codes = known[name]
        known[name] = codes
        if term.exog_names is None:
            columns = ("Intercept",) if term.Z is None else tuple(f"z{j}" for j in range(Z.shape[1]))
        else:
            columns = tuple(map(str, term.exog_names))
            if len(columns) != Z.shape[1]:
                raise LMMError(f"terms[{i}].exog_names has {len(columns)} names for {Z.shape[1]} columns")
        found.append(Term(name, codes, Z, columns, _structure(term, Z.shape[1], f"terms[{i}]")))
    if not found:
        raise LMMError("terms is empty: give at least one RandomTerm")
    return found


def _structure(term: RandomTerm, q: int, where: str) -> str:
    """The name of the structure of a block."""
    if term.structure in FREE and term.hom is None and term.rank is None:
        return term.structure
    if term.structure in FREE or term.structure not in EFFECTS:
        known = ", ".join(map(repr, (*FREE, *EFFECTS)))
        reason = "takes neither hom= nor rank=" if term.structure in FREE else f"is unknown: use one of {known}"
        raise LMMError(f"{where}: structure={term.structure!r} {reason}")
    try:
        return named(term.structure, q, hom=term.hom, rank=term.rank)
    except LMMError as error:
        raise LMMError(f"{where}: {error}") from error


def random_part(terms: Sequence[Term], given: bool = False) -> RandomPart:
    """Put the terms of each grouping factor side by side.

    Parameters
    ----------
    terms : sequence of Term
    given : bool
        Whether the parameters are: then nothing is refused.

    Raises
    ------
    LMMError
        For a term with dependent columns, and terms whose covariances cannot be told apart.
    """
    names = list(dict.fromkeys(term.name for term in terms))
    codes = {term.name: term.codes for term in terms}
    if len(names) > 1:
        codes = {name: read.dense() for name, read in codes.items()}
        names.sort(key=lambda name: -codes[name].n_slots)
    for term in () if given else terms:
        _refuse_dependent(term)
    # others may have an effect in common: what restricts them tells them apart
    free = [] if given else [term for term in terms if term.structure in FREE]
    if len(free) > 1:
        _refuse_overlap(free, codes)
    order, rest = side_by_side(names, terms)
    return RandomPart(tuple(terms[i].Z for i in order), tuple(codes[name] for name in names), *rest, order)


class NamedTerm(Protocol):
    """A term of a grouping factor, as far as it is known by name."""

    @property
    def name(self) -> str:
        """Name of the factor."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the effects."""

    @property
    def structure(self) -> str:
        """Of their covariance."""


def side_by_side(
    names: Sequence[str], terms: Sequence[NamedTerm]
) -> tuple[tuple[int, ...], tuple[tuple[slice, ...], CovarianceStructure, tuple[str, ...], tuple[str, ...]]]:
    """The terms of each grouping factor side by side: their order; spans, structure, columns, labels of `RandomPart`.

    Parameters
    ----------
    names : sequence of str
        The factors, in order.
    terms : sequence of NamedTerm
    """
    blocks: list[Block] = []
    spans: list[slice] = []
    labels: list[str] = []
    order: list[int] = []
    start = 0
    for name in names:
        first = start
        for number, i in enumerate(i for i, term in enumerate(terms) if term.name == name):
            stop = start + len(terms[i].columns)
            blocks.append(Block(start, stop, terms[i].structure))
            labels.append(f"{name}.{number}" if number else name)
            order.append(i)
            start = stop
        spans.append(slice(first, start))
    columns = tuple(column for i in order for column in terms[i].columns)
    return tuple(order), (tuple(spans), CovarianceStructure(tuple(blocks)), columns, tuple(labels))


def no_random_part(subject: Codes, n: int) -> RandomPart:
    """The random part of a model whose clusters are the subjects of its residuals, without random effects."""
    return RandomPart((np.zeros((n, 0)),), (subject,), (slice(0, 0),), CovarianceStructure(()), (), (), ())


def _refuse_dependent(term: Term) -> None:
    """Refuse a column that is zero, or a combination of those before it (for independent effects a multiple of one)."""
    Z, q = term.Z, term.Z.shape[1]
    if any(_rank(Z[::step], EXACT) == q for step in (max(1, len(Z) // SAMPLE), 1)):
        return
    for j in range(q):
        if term.correlated:
            dependent, reason = _rank(Z[:, : j + 1], EXACT) <= j, "a combination of the columns before it"
        else:
            dependent = any(_rank(Z[:, [i, j]], EXACT) < 2 for i in range(j)) or not Z[:, j].any()
            reason = "a multiple of one before it"
        if dependent:
            raise LMMError(
                f"the column {term.columns[j]!r} of ({' + '.join(term.columns)} | {term.name}) is zero or {reason}, so "
                "that its variance cannot be told from theirs; remove it from the term"
            )


def _refuse_overlap(terms: Sequence[Term], codes: dict[str, Codes]) -> None:
    """Refuse two terms that have a random effect in common: z z' times its variance is part of both covariances."""
    alike: dict[tuple[str, str], bool] = {}
    for one, other in combinations(terms, 2):
        names = one.name, other.name
        if names not in alike:
            alike[names] = one.name == other.name or _same_partition(codes[one.name], codes[other.name])
        if not alike[names]:
            continue
        for first in _independent_parts(one):
            for second in _independent_parts(other):
                if not _overlap(one.Z[:, first], other.Z[:, second]):
                    continue
                shown = [f"({' + '.join(term.columns)} | {term.name})" for term in (one, other)]
                reason = (
                    "have a random effect in common"
                    if one.name == other.name
                    else f"have one in common, as {one.name!r} and {other.name!r} divide the observations alike into "
                    f"{codes[one.name].n_slots} groups"
                )
                raise LMMError(
                    f"the random effects {shown[0]} and {shown[1]} {reason}: its two variances cannot be told apart; "
                    "leave one of the terms out, or the shared effect out of one"
                )


def _independent_parts(term: Term) -> list[slice]:
    """Columns of the sets of correlated effects of a term."""
    q = term.Z.shape[1]
    return [slice(0, q)] if term.correlated else [slice(j, j + 1) for j in range(q)]


def _same_partition(one: Codes, other: Codes) -> bool:
    """Whether two factors, all of whose slots are in use, divide the rows alike."""
    if one.n_slots != other.n_slots:
        return False
    for rows in (slice(0, SAMPLE), slice(None)):
        partner = np.full(one.n_slots, -1, dtype=np.intp)
        partner[one.codes[rows]] = other.codes[rows]
        if not np.array_equal(partner[one.codes[rows]], other.codes[rows]):
            return False
    return True


def _overlap(one: Array, other: Array) -> bool:
    """Whether the column spaces of two matrices have more than zero in common; some rows are enough to deny it."""
    joint = 0
    for step in (max(1, len(one) // SAMPLE), 1):
        joint = _rank(np.column_stack([one[::step], other[::step]]))
        if joint == one.shape[1] + other.shape[1]:
            return False
    return joint < _rank(one) + _rank(other)


def _rank(columns: Array, tolerance: float = TOLERANCE) -> int:
    """Number of independent columns; a constant one takes the origins out of the others first."""
    if _clearly_independent(columns):
        return int(columns.shape[1])
    constant = np.flatnonzero((np.ptp(columns, axis=0) == 0.0) & (columns[0] != 0.0))
    if len(constant):
        others = np.arange(columns.shape[1]) != constant[0]
        columns = columns - np.where(others, columns.mean(axis=0), 0.0)
    size = np.linalg.norm(columns, axis=0)
    scaled = columns[:, size > 0.0] / size[size > 0.0]
    if scaled.shape[1] == 0:
        return 0
    if _clearly_independent(scaled):
        return int(scaled.shape[1])
    return int(np.sum(np.linalg.svd(scaled, compute_uv=False) > tolerance))


def _clearly_independent(columns: Array) -> bool:
    """Whether their correlations about zero show it; false where that needs more digits."""
    gram = columns.T @ columns
    size = np.sqrt(gram.diagonal())
    if not size.all() or not np.isfinite(size).all():
        return False
    return len(size) == 1 or bool(np.linalg.eigvalsh(gram / np.outer(size, size))[0] > 1e-8)

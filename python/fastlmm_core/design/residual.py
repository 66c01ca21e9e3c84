"""The residual part of a model: which rows belong to a subject, where they stand, and how they vary together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..covariance.residual.relative import Relative
from ..covariance.residual.unstructured import Unstructured
from ..errors import LMMError
from ..support.checks import float_array
from ..support.types import Array, Index
from .grouping import Codes

if TYPE_CHECKING:
    from ..covariance.residual.structure import ResidualStructure

__all__ = ["ResidualPart", "Stratum", "WrittenVariance", "refuse_unplaced", "residual_part", "strata_of"]


@dataclass(frozen=True)
class Stratum:
    """The parameters of the subjects of one level of `by`.

    Attributes
    ----------
    structure : ResidualStructure
    label : str
        Level of `by`, empty where there is none.
    start, stop : int
        Its elements of phi.
    scaled : bool
        Whether the first of them is the logarithm of its scale relative to sigma^2, as for all levels but the first.
    """

    structure: ResidualStructure
    label: str
    start: int
    stop: int
    scaled: bool

    def own(self, phi: Array) -> tuple[float, Array]:
        """The scale relative to sigma^2, and the parameters of the structure."""
        if not self.scaled:
            return 1.0, phi[self.start : self.stop]
        return float(np.exp(phi[self.start])), phi[self.start + 1 : self.stop]

    def to_own(self, k: int, variance: float) -> Array:
        """Derivatives of its parameters and its variance in (phi, log sigma^2) of all k parameters.

        Parameters
        ----------
        k : int
        variance : float
            sigma^2 times its scale.
        """
        count = self.structure.n_parameters
        out = np.zeros((count + 1, k + 1))
        out[:count, self.start + self.scaled : self.stop] = np.eye(count)
        out[-1, k] = variance
        if self.scaled:
            out[-1, self.start] = variance
        return out

    def matrix(self, phi: Array, where: Any) -> Array:
        """R / sigma^2 of some rows (n, n)."""
        scale, inner = self.own(phi)
        out = self.structure.matrix(inner, where)
        return scale * out if self.scaled else out

    def root(self, phi: Array, where: Any) -> Array | None:
        """A with R / sigma^2 = A A' (n, m), where the structure has one by itself."""
        if not isinstance(self.structure, Unstructured):
            return None
        scale, inner = self.own(phi)
        return float(np.sqrt(scale)) * self.structure.root(inner, where)

    def jacobian(self, phi: Array, where: Any) -> Array:
        """Its derivatives in the elements of phi that are its own (stop - start, n, n)."""
        scale, inner = self.own(phi)
        out = self.structure.jacobian(inner, where)
        if not self.scaled:
            return out
        return scale * np.concatenate([self.structure.matrix(inner, where)[None], out])

    def framed_jacobian(self, phi: Array) -> Array:
        """A^-1 dR A^-T with the root A (stop - start, m, m), of a structure that has one."""
        assert isinstance(self.structure, Unstructured)
        out = self.structure.framed_jacobian(self.own(phi)[1])
        return np.concatenate([np.eye(self.structure.m)[None], out]) if self.scaled else out

    def framed_second(self, phi: Array, slope: Array) -> Array:
        """Sums of a slope in these coordinates times second derivatives (stop - start, stop - start)."""
        assert isinstance(self.structure, Unstructured)
        inner = self.own(phi)[1]
        out = self.structure.framed_second(inner, slope)
        if not self.scaled:
            return out
        full = np.empty((len(inner) + 1, len(inner) + 1))
        full[0, 0] = np.trace(slope)
        full[0, 1:] = full[1:, 0] = (self.structure.framed_jacobian(inner) * slope).sum(axis=(1, 2))
        full[1:, 1:] = out
        return full

    def second(self, phi: Array, where: Any, slope: Array) -> Array:
        """Sums of slope times its second derivatives (stop - start, stop - start)."""
        scale, inner = self.own(phi)
        out = self.structure.second(inner, where, slope)
        if not self.scaled:
            return out
        k = len(inner) + 1
        full = np.empty((k, k))
        full[0, 0] = np.sum(slope * self.structure.matrix(inner, where))
        change = self.structure.jacobian(inner, where)
        full[0, 1:] = full[1:, 0] = change.reshape(len(change), slope.size) @ slope.ravel()
        full[1:, 1:] = out
        return scale * full

    def second_sum(self, phi: Array, where: Any, weights: Array) -> Array:
        """Weighted sum of its second derivatives (n, n)."""
        scale, inner = self.own(phi)
        if not self.scaled:
            return self.structure.second_sum(inner, where, weights)
        out = self.structure.second_sum(inner, where, weights[1:, 1:])
        out = out + weights[0, 0] * self.structure.matrix(inner, where)
        out = out + 2.0 * np.tensordot(weights[0, 1:], self.structure.jacobian(inner, where), 1)
        return np.asarray(scale * out)


class WrittenVariance(NamedTuple):
    """A variance function as written, and what its formula remembers.

    Attributes
    ----------
    text : str
        E.g. ``"power(x)"`` or ``"~ 0 + arm"``.
    state : object
        Of a formula: its transforms and levels.
    columns : (k,) int array or None
        Of a formula, or of log-linear arrays: those in use.
    from_arrays : bool
    """

    text: str
    state: Any = None
    columns: Index | None = None
    from_arrays: bool = False


@dataclass(frozen=True, eq=False)
class ResidualPart:
    """The residual part of a model.

    Attributes
    ----------
    term : str
        As written, e.g. ``"us(visit | id)"``.
    strata : tuple of Stratum
        One for each level of `by`.
    subject : Codes
        Subject of each row: dense, subjects of different strata are different.
    stratum : (n,) intp array
    where : (n,) intp or (n, d) float array
        Positions or coordinates of the rows.
    labels : tuple of str
        Of the positions; empty where rows have coordinates.
    time, by : str
        Names of what `where` and the strata are made of.
    written : str or None
        The structure as text, where its columns are those of a table.
    variance : WrittenVariance or None
        The variance function, where there is one.
    """

    term: str
    strata: tuple[Stratum, ...]
    subject: Codes
    stratum: Index
    where: NDArray[Any]
    labels: tuple[str, ...]
    time: str
    by: str = ""
    written: str | None = None
    variance: WrittenVariance | None = None

    @property
    def n_parameters(self) -> int:
        """Elements of phi."""
        return self.strata[-1].stop

    @property
    def from_arrays(self) -> bool:
        """Whether new rows are placed by arrays, not by the columns of a table."""
        return self.written is None and (self.variance is None or self.variance.from_arrays)

    @property
    def independent(self) -> bool:
        """Whether each row is a subject of its own, and there is a variance function only."""
        return self.variance is not None and self.term == self.variance.text

    @property
    def name(self) -> str:
        """Name of the structure, e.g. ``"us"``."""
        return self.strata[0].structure.name

    @property
    def written_name(self) -> str:
        """The name by which a caller asked for the structure: ``"fa0"`` of full rank is ``"us"``."""
        return self.term.partition("(")[0]

    @property
    def at_visits(self) -> bool:
        """Whether rows have positions, not coordinates."""
        return self.strata[0].structure.positions is not None

    @cached_property
    def sorted_rows(self) -> Index:
        """The rows by subject, and within it by position or coordinate."""
        if self.where.ndim > 1:
            return np.lexsort((*self.where.T[::-1], self.subject.codes))
        keys = self._keys
        if (keys[1:] >= keys[:-1]).all():
            return np.arange(len(keys))
        return np.argsort(keys, kind="stable")

    @property
    def _keys(self) -> Index:
        """Subject and position of each row as one integer."""
        keys: Index = np.multiply(self.subject.codes, int(self.where.max(initial=0)) + 1, dtype=np.intp)
        keys += self.where
        return keys

    def checked(self, phi: ArrayLike, name: str) -> Array:
        """Phi of a caller; `name` is what a message calls it.

        Raises
        ------
        LMMError
            For another length, or values that are not finite.
        """
        values = float_array(phi, name, 1)
        count = self.n_parameters
        if len(values) != count:
            raise LMMError(f"{name} has {len(values)} elements, the residual structure {self.term} has {count}")
        if not np.isfinite(values).all():
            raise LMMError(f"{name} has values that are not finite; give {count} finite numbers")
        return values

    def covariance(self, phi: Array, rows: Index) -> Array:
        """R / sigma^2 of some rows, zero between subjects: (..., s, s) for rows (..., s)."""
        size = rows.shape[-1]
        sets = rows.reshape(-1, size)
        out = np.zeros((len(sets), size, size))
        codes = np.asarray(self.subject.codes)
        known: dict[tuple[int, bytes], Array] = {}
        for target, mine in zip(out, sets, strict=True):
            subjects = codes[mine]
            for subject in np.unique(subjects):
                at = np.flatnonzero(subjects == subject)
                own, where = int(self.stratum[mine[at[0]]]), self.where[mine[at]]
                key = own, where.tobytes()
                if key not in known:
                    known[key] = self.strata[own].matrix(phi, where)
                target[np.ix_(at, at)] = known[key]
        return out.reshape(*rows.shape, size)

    def variances(self, phi: Array) -> Array:
        """Diagonal of R / sigma^2 (n,)."""
        out = np.empty(len(self.where))
        for g, own in enumerate(self.strata):
            mine = np.flatnonzero(self.stratum == g)
            scale, inner = own.own(phi)
            out[mine] = scale * own.structure.variances(inner, self.where[mine])
        return out

    def alike(self) -> list[tuple[Stratum, NDArray[Any], Index]]:
        """Subjects of one stratum with rows at the same places: the stratum, the places (s,), the rows (c, s)."""
        order = self.sorted_rows
        codes = np.asarray(self.subject.codes)[order]
        sizes = np.bincount(codes)
        starts = np.cumsum(sizes) - sizes
        found: dict[tuple[int, bytes], list[Index]] = {}
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            rows = order[start : start + size]
            found.setdefault((int(self.stratum[rows[0]]), self.where[rows].tobytes()), []).append(rows)
        return [(self.strata[own], self.where[members[0]], np.array(members)) for (own, _), members in found.items()]

    def natural(self, phi: Array, sigma2: float) -> Array:
        """The parameters in the units that are reported, stratum by stratum."""
        return np.concatenate([
            own.structure.natural(inner, scale * sigma2) for own in self.strata for scale, inner in [own.own(phi)]
        ])  # fmt: skip

    def boundaries(self, phi: Array) -> tuple[str, ...]:
        """What has run into its limit."""
        found = []
        for own in self.strata:
            limit = own.structure.boundary(own.own(phi)[1], self.labels, self.subject.name)
            if limit is not None:
                found.append(f"{limit} ({self.by} {own.label})" if own.label else limit)
        return tuple(found)

    def about(self, phi: Array) -> ResidualPart | None:
        """The part with `us` in coordinates about phi, which are zero there; None for other structures."""
        strata = []
        for own in self.strata:
            if type(own.structure) is not Unstructured:
                return None
            inner = Relative(own.structure.m, base=own.structure.root(own.own(phi)[1], np.arange(own.structure.m)))
            strata.append(replace(own, structure=inner))
        return replace(self, strata=tuple(strata))

    def rows(self, rows: Any, copy: Index | None = None) -> ResidualPart:
        """The residual part of some rows; those of one subject with other numbers `copy` are of different subjects."""
        codes, labels = np.asarray(self.subject.codes)[rows], self.subject.slot_labels
        subject = Codes(self.subject.name, codes, 0, self.subject.n_slots, labels).dense()
        if copy is not None:
            codes = np.unique(codes * (int(copy.max(initial=0)) + 1) + copy, return_inverse=True)[1].astype(np.int64)
            subject = Codes(self.subject.name, codes, 0, int(codes.max(initial=-1)) + 1).dense()
        return replace(self, subject=subject, stratum=self.stratum[rows], where=self.where[rows])


def strata_of(structures: Sequence[ResidualStructure], labels: Sequence[str]) -> tuple[Stratum, ...]:
    """Places in phi for the structures of the levels of `by`."""
    out: list[Stratum] = []
    at = 0
    for g, (structure, label) in enumerate(zip(structures, labels, strict=True)):
        stop = at + structure.n_parameters + (g > 0)
        out.append(Stratum(structure, label, at, stop, g > 0))
        at = stop
    return tuple(out)


def residual_part(
    structure: ResidualStructure,
    term: str,
    subject: Codes,
    where: NDArray[Any],
    labels: Sequence[str],
    time: str,
    by: Codes | None = None,
) -> ResidualPart:
    """Check where the rows of subjects stand, and put the parameters of the levels of `by` side by side.

    Parameters
    ----------
    structure : ResidualStructure
    term : str
        As written.
    subject : Codes
    where : (n,) intp or (n, d) float array
    labels : sequence of str
        Of the positions.
    time : str
        Name of what `where` is made of.
    by : Codes, optional
        Groups of subjects with parameters of their own.

    Raises
    ------
    LMMError
        For two rows of a subject at one place, or a `by` that varies within a subject.
    """
    dense = subject.dense()
    stratum = np.zeros(len(where), dtype=np.intp)
    names: tuple[str, ...] = ("",)
    if by is not None:
        counted = by.count()
        stratum, names = counted.index, tuple(map(str, counted.labels.tolist()))
    part = ResidualPart(
        term, strata_of([structure] * len(names), names), dense, stratum, where, tuple(labels), time,
        "" if by is None else by.name,
    )  # fmt: skip
    refuse_unplaced(part)
    return part


def refuse_unplaced(part: ResidualPart) -> None:
    """Refuse rows that cannot all be observed.

    Raises
    ------
    LMMError
        For two rows of a subject at one place, or a `by` that varies within a subject.
    """
    if len(part.strata) > 1:
        _refuse_varying(part.subject, part.stratum, part.by)
    _refuse_repeated(part)


def _refuse_varying(subject: Codes, stratum: Index, name: str) -> None:
    first = np.full(subject.n_slots, -1, dtype=np.intp)
    first[subject.codes[::-1]] = stratum[::-1]
    other = np.flatnonzero(first[subject.codes] != stratum)
    if len(other):
        assert subject.slot_labels is not None
        raise LMMError(
            f"by={name!r} varies within the subject {subject.slot_labels[subject.codes[other[0]]]} of "
            f"{subject.name!r}: give a column that is constant within subjects"
        )


def _refuse_repeated(part: ResidualPart) -> None:
    order = part.sorted_rows
    if part.where.ndim == 1:
        keys = part._keys[order]
        if (keys[1:] != keys[:-1]).all():
            return
    codes = np.asarray(part.subject.codes)[order]
    places = part.where[order].reshape(len(order), -1)
    same = (codes[1:] == codes[:-1]) & (places[1:] == places[:-1]).all(axis=1)
    if not same.any():
        return
    assert part.subject.slot_labels is not None
    listed = []
    for at in np.flatnonzero(same)[:3].tolist():
        place = part.labels[int(places[at, 0])] if part.at_visits else ", ".join(f"{v:g}" for v in places[at])
        listed.append(f"{part.subject.slot_labels[codes[at]]} at {part.time} {place}")
    more = int(same.sum()) - len(listed)
    raise LMMError(
        f"residual={part.term!r}: subjects have two rows at one place ({'; '.join(listed)}"
        f"{f'; and {more} more' if more else ''}); remove one of each, or name a column that tells them apart"
    )

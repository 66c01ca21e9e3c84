"""Is one model nested in another, and what does the larger one add to the covariance?

The covariance of a model is sigma^2 / weights plus, for every set of correlated random effects, Z_i G Z_i' with G
any positive semidefinite matrix: a convex cone, given by the grouping of the rows and the column space of Z.  A model
is nested in another if the columns of its X, and every one of its cones, lie in those of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...design.grouping import alike_divided
from ...design.streamed import named_columns
from ...design.terms import TOLERANCE
from ...engines.protocol import linear_engine
from ...support.types import Array
from .residuals import parameters_added
from .restricted import match

if TYPE_CHECKING:
    from ...engines.protocol import LinearEngine
    from ...estimation.model import Model

__all__ = ["Cone", "Nesting", "cones", "contained", "efficient_information", "nest", "orthonormal", "same_grouping"]


@dataclass(frozen=True)
class Cone:
    """Correlated random effects of one term: the covariances Z_i G Z_i' with G positive semidefinite (k, k).

    Attributes
    ----------
    factor : str
        Name of the grouping factor.
    effects : tuple of str
    index : (n,) array or None
        Group of each row; None where rows are not held.
    n_groups : int
    columns : tuple of int
        Places of the effects among the random effects of the model.
    Z : (n, k) array
        Where rows are not held, columns that stand for those of these names.
    """

    factor: str
    effects: tuple[str, ...]
    index: NDArray[np.intp] | None
    n_groups: int
    columns: tuple[int, ...]
    Z: Array

    @property
    def size(self) -> int:
        """Number of effects k."""
        return len(self.columns)

    @property
    def name(self) -> str:
        """The effects and their grouping factor, as in a formula."""
        return f"{' + '.join(self.effects)} | {self.factor}"


@dataclass(frozen=True)
class Nesting:
    """What a model adds to one that is nested in it.

    Attributes
    ----------
    fixed : int
        Fixed effects added.
    free : int
        Covariances added that may take either sign near the smaller model.
    new : tuple of int
        Sizes of the covariance matrices added that are zero in the smaller model and otherwise positive semidefinite.
    new_effects : tuple of str
        Names of the random effects added.
    alone : Cone or None
        The effect added, where it is one, independent of all others.
    parents : tuple of tuple of Cone
        For every cone of the larger model those of the smaller that lie in it.
    by_structure : bool
        Whether terms are compared by the structures of their covariances, which cones do not tell.
    undetermined : tuple of str
        Terms added whose correlations are not determined where their variances are zero.
    undetermined_parameters : int
        How many these have.
    """

    fixed: int
    free: int
    new: tuple[int, ...]
    new_effects: tuple[str, ...]
    alone: Cone | None
    parents: tuple[tuple[Cone, ...], ...]
    by_structure: bool = False
    undetermined: tuple[str, ...] = ()
    undetermined_parameters: int = 0

    @property
    def boundary(self) -> int:
        """Parameters added that lie on the boundary in the smaller model."""
        return sum(k * (k + 1) // 2 for k in self.new)

    @property
    def df(self) -> int:
        """Parameters added; of a term that is not determined without its variances those that it has."""
        return self.fixed + self.free + self.boundary + self.undetermined_parameters


def cones(model: Model, without: Collection[int] = ()) -> tuple[Cone, ...]:
    """The cones that make up the covariance of a model; every independent random effect is one of its own.

    Parameters
    ----------
    model : LinearMixedModel
    without : collection of int
        Terms left out.
    """
    out = []
    for place, block in enumerate(model.structure.blocks):
        if place in without:
            continue
        grouping = model.factor_of(block).grouping
        places = range(block.start, block.stop)
        for columns in (tuple(places),) if block.correlated else tuple((j,) for j in places):
            effects = tuple(model.exog_re_names[j] for j in columns)
            index = None if model.streamed else grouping.index
            Z = named_columns(effects) if model.streamed else model.exog_re[:, list(columns)]
            out.append(Cone(grouping.name, effects, index, len(grouping.labels), columns, Z))
    return tuple(out)


def fixed_columns(model: Model) -> Array:
    """The columns of X that are kept, or where rows are not held columns that stand for them."""
    kept = model.problem.kept
    return named_columns([model.exog_names[j] for j in kept]) if model.streamed else model.exog[:, kept]


def contained(inner: Array, outer: Array) -> bool:
    """Whether the columns of one matrix lie in the column space of another; both (n, .) of full column rank."""
    if inner.shape[1] > outer.shape[1]:
        return False
    if inner.shape == outer.shape and np.array_equal(inner, outer):
        return True
    small, large = orthonormal(inner), orthonormal(outer)
    outside = small - large @ (large.T @ small)
    return bool((np.linalg.norm(outside, axis=0) <= TOLERANCE).all())


def orthonormal(columns: Array, weights: Array | None = None) -> Array:
    """Orthonormal basis of the column space of a matrix (n, k) of full column rank.

    A constant column takes the origins out of the others first, as a large origin costs digits.

    Parameters
    ----------
    columns : (n, k) array
    weights : (n,) array, optional
        Multiply the rows by the square roots of these.
    """
    constant = np.flatnonzero(np.ptp(columns, axis=0) == 0.0)
    if len(constant):
        one = int(constant[0])
        columns = columns - np.where(np.arange(columns.shape[1]) == one, 0.0, columns.mean(axis=0))
    columns = columns / np.linalg.norm(columns, axis=0)
    if weights is not None:
        columns *= np.sqrt(weights)[:, None]
    return np.asarray(np.linalg.qr(columns)[0], dtype=np.float64)


def same_grouping(one: Cone, other: Cone) -> bool:
    """Whether two grouping factors divide the rows alike, whatever their labels."""
    if one.n_groups != other.n_groups:
        return False
    if one.index is None or other.index is None:
        return one.factor == other.factor
    if one.index is other.index or np.array_equal(one.index, other.index):
        return True
    return alike_divided(one.index, other.index, other.n_groups)


def nest(small: Model | None, large: Model) -> Nesting | str:
    """What the larger model adds, or in words why the smaller is not nested in it.

    Parameters
    ----------
    small : LinearMixedModel or None
        None for the linear model with the fixed effects of `large` and without random effects.
    large : LinearMixedModel

    Returns
    -------
    Nesting or str
    """
    added = 0
    if small is not None:
        X, wide = fixed_columns(small), fixed_columns(large)
        if not contained(X, wide):
            return "its fixed effects are not combinations of those of the larger"
        added = wide.shape[1] - X.shape[1]
    residual = parameters_added(small, large)
    if isinstance(residual, str):
        return residual
    matched = match(small, large)
    if isinstance(matched, str):
        return matched
    targets = cones(large, matched.large)
    held: list[list[Cone]] = [[] for _ in targets]
    for cone in () if small is None else cones(small, matched.small):
        places = [i for i, target in enumerate(targets) if same_grouping(cone, target) and contained(cone.Z, target.Z)]
        if not places:
            return f"its random effects ({cone.name}) are not among those of the larger"
        held[min(places, key=lambda i: (targets[i].size, len(held[i])))].append(cone)
    found = _added(added, targets, held)
    if isinstance(found, str):
        return found
    if matched.large or matched.small:
        found = replace(
            found,
            free=found.free + matched.free,
            new=(*found.new, *matched.new),
            new_effects=(*found.new_effects, *matched.new_effects),
            alone=None,
            by_structure=True,
            undetermined=matched.undetermined,
            undetermined_parameters=matched.undetermined_parameters,
        )
    return replace(found, free=found.free + residual, alone=None) if residual else found


def _added(fixed: int, targets: Sequence[Cone], held: Sequence[Sequence[Cone]]) -> Nesting | str:
    free, new, effects, alone = 0, [], [], None
    for target, parents in zip(targets, held, strict=True):
        present = sum(parent.size for parent in parents)
        fresh = target.size - present
        if fresh < 0 or (len(parents) > 1 and not _independent(parents)):
            return "its random effects overlap, so that their covariances are not told apart"
        inner = sum(parent.size * (parent.size + 1) // 2 for parent in parents)
        free += present * (present + 1) // 2 - inner + present * fresh
        if fresh:
            new.append(fresh)
            effects.append(_new_effects(target, parents, fresh))
            if target.size == 1:
                alone = target
    if free or len(new) != 1:
        alone = None
    return Nesting(fixed, free, tuple(new), tuple(effects), alone, tuple(tuple(p) for p in held))


def _independent(parents: Sequence[Cone]) -> bool:
    """Whether the columns of several cones are linearly independent together."""
    columns = np.concatenate([orthonormal(parent.Z) for parent in parents], axis=1)
    return bool(np.linalg.svd(columns, compute_uv=False)[-1] > TOLERANCE)


def _new_effects(target: Cone, parents: Sequence[Cone], fresh: int) -> str:
    """Names of what is new, by the names of the effects where they tell."""
    known = {name for parent in parents for name in parent.effects}
    names = [name for name in target.effects if name not in known]
    shown = names if len(names) == fresh else list(target.effects)
    return f"{' + '.join(shown)} | {target.factor}"


def efficient_information(nesting: Nesting, large: Model, relative: Array | None, reml: bool) -> Array | None:
    """Information on the covariances that are zero in the smaller model, all others being estimated.

    The expected information of the larger model at the estimate of the smaller, in G / sigma^2 and log sigma^2
    (with P for V^-1 under REML; Harville 1977, J. Amer. Statist. Assoc. 72, 320-338).

    Parameters
    ----------
    nesting : Nesting
    large : LinearMixedModel
    relative : (q, q) array or None
        G / sigma^2 of the smaller model's fit, in natural units; None for the linear model.
    reml : bool

    Returns
    -------
    (d, d) array or None
        For the lower triangles by rows of the new matrices, one after the other, d = nesting.boundary, in units in
        which they matter alike.  None where it cannot be told what the smaller model estimates.
    """
    problem, structure = large.problem, large.structure
    q = structure.q
    factor = np.zeros((q, q))
    nuisance: list[Array] = []
    fresh: list[Array] = []
    for target, parents in zip(cones(large), nesting.parents, strict=True):
        places = np.ix_(target.columns, target.columns)
        turned = target.Z @ problem.z_map[places]
        axes = [np.linalg.lstsq(turned, parent.Z, rcond=None)[0] for parent in parents]
        if relative is not None and parents:
            inner = sum(
                c @ relative[np.ix_(parent.columns, parent.columns)] @ c.T
                for c, parent in zip(axes, parents, strict=True)
            )
            values, vectors = np.linalg.eigh(inner)
            factor[places] = vectors * np.sqrt(np.maximum(values, 0.0))
        basis = np.concatenate([np.linalg.qr(c)[0] for c in axes], axis=1) if axes else np.zeros((target.size, 0))
        present = basis.shape[1]
        rest = np.linalg.qr(np.concatenate([basis, np.eye(target.size)], axis=1))[0][:, present : target.size]
        basis = np.concatenate([basis, rest], axis=1)
        for i in range(target.size):
            for j in range(i + 1):
                direction = np.outer(basis[:, i], basis[:, j])
                whole = np.zeros((q, q))
                whole[places] = direction if i == j else direction + direction.T
                (fresh if j >= present else nuisance).append(whole[np.tril_indices(q)])
    criterion = linear_engine(problem.criterion())
    criterion.reml = reml
    criterion.evaluate(structure.theta(structure.canonical(factor)), 2)
    information = _information(criterion, problem.n, problem.rank, reml, large.sigma is not None)
    new = np.array(fresh)
    inner = new @ information @ new.T
    if nuisance:
        old = np.array(nuisance)
        across = old @ information @ new.T
        inner = inner - across.T @ np.linalg.lstsq(old @ information @ old.T, across, rcond=1e-10)[0]
    return inner if np.linalg.eigvalsh(inner)[0] > 1e-10 * np.trace(inner) else None


def _information(criterion: LinearEngine, n: int, rank: int, reml: bool, known: bool) -> Array:
    """Expected information on vech(G / sigma^2), sigma^2 being estimated or known, at the last point of order 2."""
    traces = criterion.traces()
    n_sum = criterion.precision()
    lower = np.tril_indices(len(n_sum))
    mean = np.where(lower[0] == lower[1], 1.0, 2.0) * n_sum[lower]
    nu = n
    if reml and rank:
        nu = n - rank
        half = np.linalg.inv(criterion.solution()[2]).T
        weight = np.zeros((rank + 1, rank + 1))
        weight[:rank, :rank] = np.triu(half)
        turned = np.einsum("ai,kab,bj->kij", half, criterion.cross()[:, :rank, :rank], half)
        traces = traces - 2.0 * criterion.traces(weight) + np.einsum("kij,lij->kl", turned, turned)
        mean = mean - np.einsum("kii->k", turned)
    return np.asarray(0.5 * (traces if known else traces - np.outer(mean, mean) / nu))

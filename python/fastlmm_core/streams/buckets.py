"""Models of more groups than this process has room for: their lines of sums stay with the workers of Dask.

Each partition splits its lines by a hash of a label (see `shuffle`); what belongs to one bucket is added up where the
bucket is, by the tree over partitions that `merge` takes, so that each line has its bits.  Here come the sums over all
rows, and, at each point of the search, the sums over groups that the criterion and its derivatives are made of, bucket
by bucket in one order: so many numbers as there are parameters, whatever the number of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from .. import kernels
from ..covariance.parameters import CovarianceStructure
from ..design.design import check_sigma
from ..design.streamed import random_without_rows
from ..engines.one_factor.conditioning import EXACT_WITHIN, MOSTLY_BETWEEN, z_rotation
from ..engines.one_factor.panels import Derived, Panels, Valued
from ..engines.one_factor.summing import Conditioned, conditioned_sums
from ..engines.one_factor.wide import WideCriterion
from ..engines.protocol import ORDINARY, Elsewhere
from ..engines.starts import moment_start
from ..errors import LMMError
from ..support.types import Array
from .cross_products import Lines
from .dask import added_up, reduced_parts
from .elsewhere import BucketRows, ElsewhereProblem, SumsElsewhere, refuse_elsewhere, undecided
from .fitting import Streamed, design_without_rows
from .plan import Plan
from .shuffle import distinct, gathered, hashes_of, split

__all__ = ["condition_buckets"]


SAMPLE = 20_000
"""Groups from which a search starts, and on which it looks for other minima: as many of each bucket."""


class Told(NamedTuple):
    """What is told of a bucket before the search.

    Attributes
    ----------
    between : (k, k) array
        The part of [X_o y_o]'[X_o y_o] between its groups.
    sample : (m', K) array
        Some of its lines.
    """

    between: Array
    sample: Array


def sizes_of(lines: Lines) -> tuple[int, ...]:
    """Levels of each factor in a bucket."""
    return tuple(len(labels) for labels in lines.levels)


def prepared(lines: Lines, to_z: Array, xy: Array) -> Panels:
    """The groups of a bucket, factored."""
    return Panels(kernels.factor_groups(lines.raw, to_z, xy)[0], True, len(to_z), len(xy))


def told(lines: Lines, to_z: Array, xy: Array, wanted: int) -> Told:
    """See `Told`; `wanted`: lines of the sample."""
    return Told(kernels.factor_groups(lines.raw, to_z, xy)[1], lines.raw[:wanted])


# ---- the problem ------------------------------------------------------------------------------------------


class Buckets(SumsElsewhere):
    """The sums over all groups (see `engines.one_factor.panels`).

    Parameters
    ----------
    client, held
        See `SumsElsewhere`; panels.
    effects : int
        Random effects over all groups.
    """

    def __init__(self, client: Any, held: list[Any], effects: int) -> None:
        super().__init__(client, held)
        self.effects = effects

    def _sum(self, what: str, *arguments: Any) -> Array:
        total: Array = sum(self.all_of(what, *arguments))
        return total

    def values(self, F: Array) -> Valued:
        """See `GroupSums`."""
        found = self.all_of("values", F)
        return Valued(*(sum(parts) for parts in zip(*found, strict=True)))

    def derivatives(self, F: Array, R: Array, beta: Array, ratio: float, reml: bool, order: int, keep: bool) -> Derived:
        """See `GroupSums`."""
        found = self.all_of("derivatives", F, R, beta, ratio, reml, order, False)
        outer, square, tensor, u, within = (sum(parts) for parts in list(zip(*found, strict=True))[:-1])
        return Derived(outer, square, tensor, u, within, [])

    def cross(self, F: Array) -> Array:
        """See `GroupSums`."""
        return self._sum("cross", F)

    def traces(self, F: Array, weight: Array | None) -> Array:
        """See `GroupSums`."""
        return self._sum("traces", F, weight)

    def sandwich(self, F: Array, mapped: Array) -> Array:
        """See `GroupSums`."""
        return self._sum("sandwich", F, mapped)


@dataclass(frozen=True, eq=False, kw_only=True)
class BucketProblem(ElsewhereProblem):
    """A problem of one grouping factor whose groups are elsewhere; see `OneFactorProblem`.

    Attributes
    ----------
    groups : Buckets
    sample : Panels
        Some of the groups: what a search starts from.
    sampled : int
        How many.
    """

    groups: Buckets
    sample: Panels
    sampled: int
    within: Array
    z_scale: Array
    z_rows: Array

    @property
    def levels(self) -> Array:
        """Number of groups of each random effect (q,)."""
        return np.full(self.structure.q, float(self.m))

    def conditioned_z(self, Z: Array) -> Array:
        """Rows of Z_o (n, q)."""
        return np.asarray((Z - self.z_scale[0]) * self.z_scale[1] @ self.z_rows)

    def criterion(self, columns: Array | None = None) -> WideCriterion:
        """The criterion, of [X y] as they are."""
        if columns is not None:
            refuse_elsewhere("profiles and what constrains coefficients")
        return self._engine(self.groups, self.within, self.n)

    def _engine(self, groups: Any, within: Array, n: int) -> WideCriterion:
        rows, columns = self.structure.positions
        nothing = np.zeros((0, 1, 1))
        return WideCriterion(nothing, within, n, self.structure.q, self.rank + 1, rows, columns, True, groups=groups)

    def pilot(self) -> WideCriterion:
        """The criterion of the sample, as many of the rows for it as it has of the groups."""
        share = self.sampled / self.m
        return self._engine(self.sample, self.within * share, round(self.n * share))

    def elsewhere(self) -> Elsewhere:
        """Other minima are looked for in the sample."""
        return Elsewhere("search", ORDINARY, self.pilot())

    def start(self, criterion: Any) -> Array:
        """Theta from the moments of the sample."""
        pilot = self.pilot()
        share = pilot.n_rows / self.n
        return moment_start(pilot, self.structure, pilot.n_rows, self.sampled, float(self.within[-1]) * share)


def _current() -> Any:
    """The current client."""
    try:
        return import_module("distributed").default_client()
    except (ImportError, ValueError) as error:
        raise LMMError("buckets= needs workers that keep them: give client=, one of distributed") from error


def condition_buckets(plan: Plan, frame: Any, client: Any, count: int, sigma: float | None = None) -> Streamed:
    """The model of a plan and a data frame of Dask, whose groups stay with the workers.

    Parameters
    ----------
    plan : Plan
    frame : dask.dataframe.DataFrame
    client : distributed.Client
    count : int
        Buckets.
    sigma : float, optional
        Residual standard deviation where it is known.

    Raises
    ------
    LMMError
        For crossed factors, and models that the sums alone do not decide.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise LMMError(f"buckets={count!r} must be a positive number of buckets; a few for each worker are enough")
    structure = random_without_rows(plan.recipe.terms).structure
    if sigma is not None:
        check_sigma(sigma, structure)
    client = client if client is not None else _current()
    delayed, several = import_module("dask").delayed, len(plan.factors) > 1
    parts = reduced_parts(plan, frame)
    sizes, outermost = [0], 0
    if several:
        parts = client.persist(parts)
        hashes = [delayed(hashes_of, nout=count)(part, count) for part in parts]
        labels = client.gather(client.compute([delayed(distinct)([own[b] for own in hashes]) for b in range(count)]))
        sizes = np.sum(labels, axis=0).tolist()
        outermost = sizes.index(min(sizes))
    splits = [delayed(split, nout=count + 1)(part, outermost, count) for part in parts]
    rest, *lines = client.compute(
        [added_up([one[0] for one in splits])]
        + [delayed(gathered)([one[b + 1] for one in splits]) for b in range(count)]
    )
    total = rest.result()
    in_buckets = client.gather([client.submit(sizes_of, own, pure=False) for own in lines])
    if several:
        from .nested_buckets import condition_nested

        # a level that is in two buckets belongs to two levels of the outermost factor
        apart = np.sum(in_buckets, axis=0).tolist() == sizes and len(set(sizes)) == len(sizes)
        reader = BucketRows(plan, total, sizes)
        some = [own for own, (first, *_) in zip(lines, in_buckets, strict=True) if first]
        nested = condition_nested(reader, client, some, sigma) if apart else None
        if nested is None:
            raise LMMError(
                "buckets= is for one grouping factor, or for several that are nested in each other, and "
                f"{', '.join(map(repr, plan.factors))} are not: leave it out, so that a line of sums for each "
                "combination of their levels comes here, or keep the factor with most levels alone"
            )
        return Streamed(design_without_rows(plan, reader, nested, 1, sigma), nested)
    m = sum(own for (own,) in in_buckets)
    reader = BucketRows(plan, total, [m])
    found = conditioned_sums(
        reader, plan.columns, lambda gram, n, _: z_rotation(gram, n, structure),
        lambda triangle, n: np.eye(structure.q), sigma=sigma,
    )  # fmt: skip
    assert found is not None
    problem = _problem(found, reader, structure, client, lines, m, sigma is not None)
    return Streamed(design_without_rows(plan, reader, problem, 1, sigma), problem)


def _problem(
    found: Conditioned, reader: BucketRows, structure: CovarianceStructure, client: Any, lines: list[Any], m: int,
    known: bool,
) -> BucketProblem:  # fmt: skip
    """The problem of sums over all rows, and of lines elsewhere; `known`: the residual variance is."""
    columns, q, r, n = found.columns, structure.q, len(found.kept), reader.n
    to_z, xy = found.to_z, found.xy
    held = [client.submit(prepared, own, to_z, xy, pure=False) for own in lines]
    share = -(-SAMPLE // len(lines))
    parts: list[Told] = client.gather([client.submit(told, own, to_z, xy, share, pure=False) for own in lines])
    between: Array = np.sum([part.between for part in parts], axis=0)
    within = kernels.within_part(found.packed, xy, between)
    sample = np.concatenate([part.sample for part in parts])
    wanted = 2 * r + 1
    few = sample[: 4 * wanted + 8]
    # what is not identified beside a known variance is told when G is estimated
    free = known or kernels.vary_freely(kernels.factor_groups(few, to_z, xy)[0], few, q, wanted, 1e-4 * sqrt(n) / m)
    if not free or kernels.within_regression(within, r + 1, EXACT_WITHIN)[1] < MOSTLY_BETWEEN * n:
        undecided()
    if kernels.clear_exact(within, r + 1, float(n), EXACT_WITHIN):
        raise LMMError(
            "y is reproduced exactly within every group by the random effects: the residual variance is zero; "
            "use fewer random effects"
        )
    x_map, base, log_det = kernels.natural_map(columns.x_scale, columns.x_constant, found.to_x, found.beta)
    return BucketProblem(
        n=n,
        m=m,
        structure=structure,
        groups=Buckets(client, held, q * m),
        sample=Panels(kernels.factor_groups(sample, to_z, xy)[0], True, q, r + 1),
        sampled=len(sample),
        within=within,
        z_scale=columns.z_scale,
        x_scale=columns.x_scale,
        z_rows=to_z,
        x_rows=found.to_x,
        x_constant=columns.x_constant >= 0,
        z_map=kernels.natural_map(columns.z_scale, columns.z_constant, to_z, None)[0],
        x_map=x_map,
        beta_base=base,
        scale=found.scale,
        kept=found.kept,
        log_constant=-reader.log_weights,
        log_jacobian=2.0 * log_det,
    )

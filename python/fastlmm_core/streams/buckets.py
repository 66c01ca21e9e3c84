"""Models of more groups than this process has room for: their lines of sums stay with the workers of Dask.

Each partition splits its lines by a hash of the label; what belongs to one bucket is added up where the bucket is, by
the tree over partitions that `merge` takes, so that each line has its bits.  Here come the sums over all rows, and, at
each point of the search, the sums over groups that the criterion and its derivatives are made of, bucket by bucket in
one order: so many numbers as there are parameters, whatever the number of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from math import sqrt
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.parameters import CovarianceStructure
from ..design.grouping import Grouping
from ..design.streamed import StreamedCodes, random_without_rows
from ..engines.conditioned import ConditionedProblem
from ..engines.one_factor.conditioning import EXACT_WITHIN, MOSTLY_BETWEEN, z_rotation
from ..engines.one_factor.panels import Derived, Panels, Valued
from ..engines.one_factor.reading import RowSums
from ..engines.one_factor.summing import Conditioned, conditioned_sums
from ..engines.one_factor.wide import WideCriterion
from ..engines.protocol import ORDINARY, Elsewhere
from ..engines.starts import moment_start
from ..errors import LMMError
from ..kernels.records import RowColumns
from ..support.types import Array, Index
from .cross_products import CrossProducts, union
from .dask import added_up, partitions
from .fitting import Streamed, design_without_rows
from .plan import Plan
from .reader import StreamRows

__all__ = ["condition_buckets"]


SAMPLE = 20_000
"""Groups from which a search starts, and on which it looks for other minima: as many of each bucket."""


# ---- lines by buckets -------------------------------------------------------------------------------------


class Lines(NamedTuple):
    """Lines of sums of some groups.

    Attributes
    ----------
    labels : (m,) array
    raw : (m, K) array
    """

    labels: NDArray[Any]
    raw: Array


def bucket_of(labels: NDArray[Any], count: int) -> Index:
    """The bucket of each label: the same in all processes, and for a label whatever the others are."""
    from pandas.util import hash_array

    if labels.dtype.kind == "O" and len(labels) and isinstance(labels[0], tuple):
        text = np.empty(len(labels), dtype=object)
        text[:] = ["\x1f".join(map(str, label)) for label in labels.tolist()]
        labels = text
    found: Index = (hash_array(labels, categorize=False) % np.uint64(count)).astype(np.intp)
    return found


def split(plan: Plan, part: Any, key: int, count: int) -> tuple[Any, ...]:
    """The sums over the rows of a partition without its lines, then the lines of each bucket."""
    whole = plan.reduce(part, key)
    (labels,) = whole.levels
    bucket = bucket_of(labels, count)
    rest = replace(whole, levels=(labels[:0],), cells=whole.cells[:0], raw=whole.raw[:0])
    return rest, *(Lines(labels[bucket == b], whole.raw[bucket == b]) for b in range(count))


def gathered(parts: Sequence[Lines]) -> Lines:
    """Lines of one bucket, added by a tree over the partitions."""
    level = list(parts)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [_added(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]


def _added(one: Lines, other: Lines) -> Lines:
    labels, at = union(one.labels, other.labels)
    raw = np.zeros((len(labels), one.raw.shape[1]))
    raw[at[0]] = one.raw
    raw[at[1]] += other.raw
    return Lines(labels, raw)


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


def size_of(lines: Lines) -> int:
    """Groups of a bucket."""
    return len(lines.labels)


def prepared(lines: Lines, to_z: Array, xy: Array) -> Panels:
    """The groups of a bucket, factored."""
    return Panels(kernels.factor_groups(lines.raw, to_z, xy)[0], True, len(to_z), len(xy))


def told(lines: Lines, to_z: Array, xy: Array, wanted: int) -> Told:
    """See `Told`; `wanted`: lines of the sample."""
    return Told(kernels.factor_groups(lines.raw, to_z, xy)[1], lines.raw[:wanted])


def asked(panels: Panels, what: str, arguments: tuple[Any, ...]) -> Any:
    """One of the sums of a bucket."""
    return getattr(panels, what)(*arguments)


# ---- the problem ------------------------------------------------------------------------------------------


class Buckets:
    """The sums over all groups, each bucket's made by the worker that has it (see `engines.one_factor.panels`).

    Parameters
    ----------
    client : distributed.Client
    held : list of Future
        Panels.
    effects : int
        Random effects over all groups.
    """

    def __init__(self, client: Any, held: list[Any], effects: int) -> None:
        self._client, self._held, self.effects = client, held, effects

    def _all(self, what: str, *arguments: Any) -> list[Any]:
        tasks = [self._client.submit(asked, panels, what, arguments, pure=False) for panels in self._held]
        found: list[Any] = self._client.gather(tasks)
        return found

    def _sum(self, what: str, *arguments: Any) -> Array:
        total: Array = sum(self._all(what, *arguments))
        return total

    def values(self, F: Array) -> Valued:
        """See `GroupSums`."""
        found = self._all("values", F)
        return Valued(*(sum(parts) for parts in zip(*found, strict=True)))

    def derivatives(self, F: Array, R: Array, beta: Array, ratio: float, reml: bool, order: int, keep: bool) -> Derived:
        """See `GroupSums`."""
        found = self._all("derivatives", F, R, beta, ratio, reml, order, False)
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
class BucketProblem(ConditionedProblem):
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
            _refuse("profiles and what constrains coefficients")
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

    def effects(self, factor: Array, beta: Array) -> NoReturn:
        """Refuse what is about each group."""
        _refuse("random effects")

    def effects_covariance(self, factor: Array) -> NoReturn:
        """Refuse what is about each group."""
        _refuse("random effects")

    def refuse_groups(self) -> NoReturn:
        """Refuse what reads the groups one by one."""
        _refuse("what is about each of the groups")

    def __reduce__(self) -> NoReturn:
        _refuse("a pickle")


def _refuse(what: str) -> NoReturn:
    raise LMMError(
        f"{what} cannot be given: the groups of this model lie in buckets with the workers; fit without buckets=, "
        "where they have room here"
    )


class BucketGrouping(Grouping):
    """A grouping factor whose labels are with the workers."""

    @property
    def labels(self) -> NoReturn:
        """Refuse them."""
        _refuse("labels of groups")


class BucketRows(StreamRows):
    """Sums over all rows, for conditioning; the lines are elsewhere."""

    def __init__(self, plan: Plan, total: CrossProducts, m: int) -> None:
        super().__init__(plan, None, total)
        self._whole, self._m = total, m

    def sums(self, columns: RowColumns, kept: Index | None) -> RowSums:
        """The sums over all rows; a line for each group that only counts."""
        total, name = self._whole, self.plan.factors[0]
        if columns is not self.plan.columns:
            _undecided()
        self.n, self.seen, self.log_weights = total.nobs, total.seen, total.log_weights
        self.gram, self.packed, self.n_slots = total.gram, total.packed, self._m
        self.groupings = (BucketGrouping(StreamedCodes(name, np.empty(0, dtype=np.int64), 0, self._m, None)),)
        self.check()
        one = np.broadcast_to(np.ones((1, 1)), (self._m, 1))
        return RowSums(one, total.packed.copy(), total.gram.copy(), total.constant, total.varies, True)

    def first(self) -> NoReturn:
        """Refuse to read rows."""
        _undecided()

    def triangle(self, shift_scale: Array, of_z: bool) -> NoReturn:
        """Refuse to read rows."""
        _undecided()


def _undecided() -> NoReturn:
    raise LMMError(
        "buckets=: the sums alone do not decide this model, as its columns are nearly dependent, explain nearly all of "
        "y, or nearly all of y varies between groups; center the columns, leave out those that depend on others, or "
        "fit without buckets="
    )


def _current() -> Any:
    """The current client."""
    try:
        return import_module("distributed").default_client()
    except (ImportError, ValueError) as error:
        raise LMMError("buckets= needs workers that keep them: give client=, one of distributed") from error


def condition_buckets(plan: Plan, frame: Any, client: Any, count: int) -> Streamed:
    """The model of a plan and a data frame of Dask, whose groups stay with the workers.

    Parameters
    ----------
    plan : Plan
        With one grouping factor.
    frame : dask.dataframe.DataFrame
    client : distributed.Client
    count : int
        Buckets.

    Raises
    ------
    LMMError
        For several grouping factors, and models that the sums alone do not decide.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise LMMError(f"buckets={count!r} must be a positive number of buckets; a few for each worker are enough")
    client = client if client is not None else _current()
    if len(plan.factors) > 1:
        raise LMMError(
            f"buckets= is for one grouping factor, and there are {', '.join(map(repr, plan.factors))}: leave it out, "
            "so that a line of sums for each combination of their levels comes here, or keep the factor with most "
            "levels alone"
        )
    delayed = import_module("dask").delayed
    sent = delayed(plan)
    splits = [
        delayed(split, nout=count + 1)(sent, part, i, count)
        for i, part in enumerate(partitions(frame, list(plan.needs)))
    ]
    rest, *lines = client.compute(
        [added_up([one[0] for one in splits])]
        + [delayed(gathered)([one[b + 1] for one in splits]) for b in range(count)]
    )
    total = rest.result()
    m = sum(client.gather([client.submit(size_of, own, pure=False) for own in lines]))
    reader = BucketRows(plan, total, m)
    structure = random_without_rows(plan.recipe.terms).structure
    found = conditioned_sums(
        reader, plan.columns, lambda gram, n, _: z_rotation(gram, n, structure), lambda triangle, n: np.eye(structure.q)
    )
    assert found is not None
    problem = _problem(found, reader, structure, client, lines, m)
    return Streamed(design_without_rows(plan, reader, problem, 1), problem)


def _problem(
    found: Conditioned, reader: BucketRows, structure: CovarianceStructure, client: Any, lines: list[Any], m: int
) -> BucketProblem:
    """The problem of sums over all rows, and of lines elsewhere."""
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
    free = kernels.vary_freely(kernels.factor_groups(few, to_z, xy)[0], few, q, wanted, 1e-4 * sqrt(n) / m)
    if not free or kernels.within_regression(within, r + 1, EXACT_WITHIN)[1] < MOSTLY_BETWEEN * n:
        _undecided()
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

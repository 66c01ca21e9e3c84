"""Models whose groups are elsewhere: what is here of them, and a refusal of what reads the groups one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..design.grouping import Grouping
from ..design.streamed import StreamedCodes
from ..engines.conditioned import ConditionedProblem
from ..engines.one_factor.reading import RowSums
from ..errors import LMMError
from ..kernels.records.rows import RowColumns
from ..support.types import Array, Index
from .cross_products import CrossProducts
from .plan import Plan
from .reader import StreamRows

__all__ = ["BucketRows", "ElsewhereProblem", "SumsElsewhere", "refuse_elsewhere", "undecided"]


def refuse_elsewhere(what: str) -> NoReturn:
    """Say that the groups are not here.

    Raises
    ------
    LMMError
    """
    raise LMMError(
        f"{what} cannot be given: the groups of this model lie in buckets with the workers; fit without buckets=, "
        "where they have room here"
    )


def undecided() -> NoReturn:
    """Say that the rows would have to be looked at again.

    Raises
    ------
    LMMError
    """
    raise LMMError(
        "buckets=: the sums alone do not decide this model, as its columns are nearly dependent, explain nearly all of "
        "y, or nearly all of y varies between groups; center the columns, leave out those that depend on others, or "
        "fit without buckets="
    )


def _asked(held: Any, what: str, arguments: tuple[Any, ...]) -> Any:
    """One of the sums of a bucket."""
    return getattr(held, what)(*arguments)


class SumsElsewhere:
    """Sums over groups, each bucket's made by the worker that has it.

    Parameters
    ----------
    client : distributed.Client
    held : list of Future
        Of what gives the sums of a bucket.
    """

    def __init__(self, client: Any, held: list[Any]) -> None:
        self._client, self._held = client, held

    def all_of(self, what: str, *arguments: Any) -> list[Any]:
        """What a method of each bucket gives, in their order."""
        tasks = [self._client.submit(_asked, own, what, arguments, pure=False) for own in self._held]
        found: list[Any] = self._client.gather(tasks)
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class ElsewhereProblem(ConditionedProblem):
    """A problem whose groups are elsewhere.

    Attributes
    ----------
    alone : float
        Nothing: sums alone do not decide a model whose response X reproduces.
    """

    alone: float = 0.0

    def effects(self, factor: Array, beta: Array) -> NoReturn:
        """Refuse what is about each group."""
        refuse_elsewhere("random effects")

    def effects_covariance(self, factor: Array) -> NoReturn:
        """Refuse what is about each group."""
        refuse_elsewhere("random effects")

    def refuse_groups(self) -> NoReturn:
        """Refuse what reads the groups one by one."""
        refuse_elsewhere("what is about each of the groups")

    def __reduce__(self) -> NoReturn:
        refuse_elsewhere("a pickle")


class BucketGrouping(Grouping):
    """A grouping factor whose labels are with the workers."""

    @property
    def labels(self) -> NoReturn:
        """Refuse them."""
        refuse_elsewhere("labels of groups")


class BucketRows(StreamRows):
    """Sums over all rows, for conditioning; the lines are elsewhere.

    Parameters
    ----------
    plan : Plan
    total : CrossProducts
        Without lines.
    sizes : sequence of int
        Levels of each factor.
    """

    def __init__(self, plan: Plan, total: CrossProducts, sizes: Sequence[int]) -> None:
        super().__init__(plan, None, total)
        self._whole, self._m = total, max(sizes)
        self.order = sorted(range(len(sizes)), key=lambda f: -sizes[f])
        self.groupings = tuple(
            BucketGrouping(StreamedCodes(plan.factors[f], np.empty(0, dtype=np.int64), 0, sizes[f], None))
            for f in self.order
        )

    def sums(self, columns: RowColumns, kept: Index | None) -> RowSums:
        """The sums over all rows; a line for each group that only counts."""
        total = self._whole
        if columns is not self.plan.columns:
            undecided()
        self.n, self.seen, self.log_weights = total.nobs, total.seen, total.log_weights
        self.gram, self.packed, self.n_slots = total.gram, total.packed, self._m
        self.check()
        one = np.broadcast_to(np.ones((1, 1)), (self._m, 1))
        return RowSums(one, total.packed.copy(), total.gram.copy(), total.constant, total.varies, True)

    def first(self) -> NoReturn:
        """Refuse to read rows."""
        undecided()

    def triangle(self, shift_scale: Array, of_z: bool) -> NoReturn:
        """Refuse to read rows."""
        undecided()

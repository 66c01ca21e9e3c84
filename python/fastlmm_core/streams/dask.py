"""Data frames of Dask: their partitions are the fragments, summed where they are.

Nothing is imported but Dask, which the caller has; the client that is current does the work.  Each task is a pure
function of the plan and one partition, so that it may be killed, moved and done again; sums are added by a tree over
the partitions in their order, whatever the order in which tasks end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from ..errors import LMMError
from .cross_products import CrossProducts, merge
from .plan import Plan, candidates, make_plan
from .source import Scan
from .wanted import Wanted

__all__ = ["added_up", "is_dask", "partitions", "plan_of_dask", "reduce_dask", "reduced_parts"]


def is_dask(data: Any) -> bool:
    """Whether this is a data frame of Dask."""
    return type(data).__module__.split(".")[0] in ("dask", "dask_expr") and hasattr(data, "to_delayed")


def partitions(frame: Any, names: list[str]) -> list[Any]:
    """The partitions as delayed tables with the columns named."""
    chosen = frame[[name for name in frame.columns if name in names]]
    found: list[Any] = chosen.to_delayed()
    if not found:
        raise LMMError("the data frame has no partitions")
    return found


def _see(wanted: Wanted, part: Any) -> Wanted:
    own = copy.deepcopy(wanted)
    for table in Scan([("part", lambda columns: iter([part]))]).tables():
        own.see(table)
    return own


def _reduce(plan: Plan, part: Any, key: int) -> CrossProducts:
    return plan.reduce(part, key)


def _computed(client: Any, values: list[Any]) -> list[Any]:
    """What delayed values are, by a client, or by whatever is current."""
    if client is not None:
        return list(client.gather(client.compute(values)))
    return list(import_module("dask").compute(*values))


def plan_of_dask(
    formula: str, frame: Any, weights: str | None, offset: str | None, missing: str, levels: Mapping[str, Any],
    client: Any = None,
) -> Plan:  # fmt: skip
    """The plan for a data frame of Dask.

    The first partitions come here, until one has complete rows; what the formula has to learn of all rows, the workers
    see.

    Parameters
    ----------
    formula : str
    frame : dask.dataframe.DataFrame
    weights, offset : str or None
    missing : {"drop", "raise"}
    levels : dict
    client : distributed.Client, optional
        By default the current one, or the threads of this process where there is none.

    Raises
    ------
    LMMError
        As `plan`.
    """
    dask = import_module("dask")
    parts = partitions(frame, candidates(formula, weights, offset))
    held: dict[int, Any] = {}

    def fragment(i: int) -> Callable[[list[str] | None], Iterator[Any]]:
        def read(columns: list[str] | None) -> Iterator[Any]:
            if i not in held:
                held[i] = _computed(client, [parts[i]])[0]
            yield held[i]

        return read

    def see_all(wanted: Wanted) -> None:
        blank = dask.delayed(copy.deepcopy(wanted))
        for seen in _computed(client, [dask.delayed(_see)(blank, part) for part in parts]):
            wanted.take(seen)

    source = Scan([(i, fragment(i)) for i in range(len(parts))])
    return make_plan(formula, source, weights, offset, missing, levels, see_all)


def reduce_dask(plan: Plan, frame: Any, client: Any = None) -> CrossProducts:
    """The sums of a data frame of Dask.

    Parameters
    ----------
    plan : Plan
    frame : dask.dataframe.DataFrame
    client : distributed.Client, optional
        By default the current one, or the threads of this process where there is none.

    Returns
    -------
    CrossProducts
        Its keys are the numbers of the partitions.

    Raises
    ------
    LMMError
        As `Plan.reduce`.
    """
    (total,) = _computed(client, [added_up(reduced_parts(plan, frame))])
    assert isinstance(total, CrossProducts)
    return total


def reduced_parts(plan: Plan, frame: Any) -> list[Any]:
    """The delayed sums of each partition."""
    dask = import_module("dask")
    sent = dask.delayed(plan)
    return [dask.delayed(_reduce)(sent, part, i) for i, part in enumerate(partitions(frame, list(plan.needs)))]


def added_up(parts: list[Any]) -> Any:
    """The tree by which delayed sums of partitions are added."""
    add, level = import_module("dask").delayed(merge), parts
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [add(pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]

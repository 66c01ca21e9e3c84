"""Data frames of Spark: each partition is summed where it is, by ``mapInArrow``, and only the sums come back.

Nothing is imported but pyspark, which the caller has, and only its data frames are used, so that Spark Connect will do.
What a partition gives is taken once, however often its task was tried.  Which rows a partition has, and which rows come
first, Spark does not promise: two runs agree to rounding errors.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from .cross_products import CrossProducts, merge
from .plan import Plan, candidates, make_plan
from .source import Scan, scan
from .wanted import HEAD, Wanted

__all__ = ["is_spark", "plan_of_spark", "reduce_spark"]


def is_spark(data: Any) -> bool:
    """Whether this is a data frame of Spark."""
    return type(data).__module__.split(".")[0] == "pyspark" and hasattr(data, "mapInArrow")


def _of_partitions(frame: Any, names: list[str], work: Callable[[Iterator[Any], int], Any]) -> list[Any]:
    """What a function of batches and the partition's number gives for each partition."""

    def partition(batches: Iterator[Any]) -> Iterator[Any]:
        context = import_module("pyspark").TaskContext.get()
        found = pickle.dumps(work(batches, context.partitionId()))
        yield import_module("pyarrow").RecordBatch.from_pydict({"found": [found]})

    rows = frame.select(*names).mapInArrow(partition, "found binary").collect()
    return [pickle.loads(bytes(row.found)) for row in rows]


def plan_of_spark(
    formula: str, frame: Any, weights: str | None, offset: str | None, missing: str, levels: Mapping[str, Any]
) -> Plan:
    """The plan for a data frame of Spark.

    Some complete rows come here; what the formula has to learn of all rows, the executors see.

    Parameters
    ----------
    formula : str
    frame : pyspark.sql.DataFrame
    weights, offset : str or None
    missing : {"drop", "raise"}
    levels : dict

    Raises
    ------
    LMMError
        As `plan`.
    """
    names = [name for name in frame.columns if name in candidates(formula, weights, offset)]
    chosen = frame.select(*names)
    held: list[Any] = []

    def head(columns: list[str] | None) -> Iterator[Any]:
        if not held:
            some = chosen.na.drop().limit(2 * HEAD).toArrow()
            held.append(some if some.num_rows else chosen.limit(1).toArrow())
        yield held[0]

    def see_all(wanted: Wanted) -> None:
        blank = copy.deepcopy(wanted)

        def work(batches: Iterator[Any], number: int) -> Wanted:
            own = copy.deepcopy(blank)
            for table in scan(batches).tables():
                own.see(table)
            return own

        for seen in _of_partitions(frame, names, work):
            wanted.take(seen)

    return make_plan(formula, Scan([("head", head)]), weights, offset, missing, levels, see_all)


def reduce_spark(plan: Plan, frame: Any) -> CrossProducts:
    """The sums of a data frame of Spark.

    Parameters
    ----------
    plan : Plan
    frame : pyspark.sql.DataFrame

    Returns
    -------
    CrossProducts
        Its keys are the numbers of the partitions.

    Raises
    ------
    LMMError
        As `Plan.reduce`.
    """
    return merge(_of_partitions(frame, list(plan.needs), plan.reduce))

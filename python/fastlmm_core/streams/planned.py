"""The plan of whatever holds rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ..support.arguments import checked
from .dask import is_dask, plan_of_dask
from .plan import Plan, make_plan
from .source import scan
from .spark import is_spark, plan_of_spark

__all__ = ["plan"]


@checked
def plan(
    formula: str,
    source: Any,
    *,
    weights: str | None = None,
    offset: str | None = None,
    missing: Literal["drop", "raise"] = "drop",
    levels: Mapping[str, Iterable[Any]] | None = None,
) -> Plan:
    """What workers have to know to sum up their parts of the data.

    Parameters
    ----------
    formula : str
        As of `lmm`.
    source : anything that `scan` takes, or a data frame of Dask or Spark
        The data.  The first rows are read; all of them only where the formula has to see them: levels of categorical
        columns that `levels` does not give, ``center()``, ``scale()``, ``within()``, ``between()``.
    weights, offset : str, optional
        Columns of the data.
    missing : {"drop", "raise"}
        What to do with rows with missing values.
    levels : dict, optional
        Levels of categorical columns of the fixed part and of random effects, in order.

    Returns
    -------
    Plan

    Raises
    ------
    LMMError
        For a formula that cannot be used, or functions in it that need all rows at once.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> plan = flc.plan("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy"))
    >>> plan.needs
    ('Reaction', 'Days', 'Subject')
    """
    known = levels or {}
    if is_dask(source):
        return plan_of_dask(formula, source, weights, offset, missing, known)
    if is_spark(source):
        return plan_of_spark(formula, source, weights, offset, missing, known)
    return make_plan(formula, scan(source), weights, offset, missing, known)

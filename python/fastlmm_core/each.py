"""Many problems at once, each with a design of its own: from stacked arrays, or from one table."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .design.design import Source
from .design.grouping import Codes, group_codes, sorted_groups
from .design.ownership import sealed_rows
from .errors import LMMError
from .model import LinearMixedModel, arrays_design, design_of
from .support.arguments import checked
from .support.checks import float_array
from .support.types import Array
from .tables.columns import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .design.design import Design
    from .design.grouping import Grouping
    from .inference.many.each import EachResult

__all__ = ["fit_by", "fit_each"]


@checked
def fit_each(
    y: ArrayLike,
    X: ArrayLike | None,
    Z: ArrayLike | None,
    groups: Any,
    each: Any,
    *,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    structure: Literal["full", "diagonal"] = "full",
    reml: bool = True,
    exog_names: Sequence[str] | None = None,
    exog_re_names: Sequence[str] | None = None,
    group_name: str = "group",
    n_jobs: int | None = None,
    progress: bool | None = None,
    out: Any = None,
    resume: EachResult | None = None,
) -> EachResult:
    """Fit many problems, each with rows and a design of its own.

    Every problem is conditioned, searched and certified as a single fit is, and agrees with it; results do not depend
    on the number of threads or on the order of the problems.

    Parameters
    ----------
    y : (n,) array
        Responses of all problems.
    X : (n, p) array or None
        Columns of the fixed effects, the same ones in all problems; None means an intercept.  A column that depends on
        those before it in one problem is dropped there, and its estimate is NaN.
    Z : (n, q) array or None
        Columns of the random effects; None means a random intercept.
    groups : (n,) array
        Group of each row.  Groups of the same label in two problems have nothing to do with each other.
    each : (n,) array
        The problem that each row belongs to: labels in any order, sorted for speed.  Sizes may differ.
    weights, offset : (n,) arrays, optional
        As for `LinearMixedModel`.
    structure : {"full", "diagonal"}
    reml : bool
    exog_names, exog_re_names, group_name
        Names, as for `LinearMixedModel`.
    n_jobs : int, optional
        Threads; by default one per processor.
    progress : bool, optional
        Show a progress bar (needs tqdm); by default in interactive sessions.
    out : mapping of str to array-like, optional
        Arrays that take the estimates of some problems at a time when they are finished, as for
        `LinearMixedModel.fit_many`; a row for each problem, in the order of the sorted labels.
    resume : EachResult, optional
        What an interrupt or an error has left of an earlier run of the same problems: the exception has it as its
        attribute ``batch``.  The problems that it has not reached are fitted, and the result has the bits of an
        unbroken run.

    Returns
    -------
    EachResult
        In the order of the sorted labels.  Problems that cannot be fitted are NaN, and ``result.reasons`` says why.

    Raises
    ------
    LMMError
        For arrays that do not fit each other, values that are not finite, and what is left of a run of other problems.

    Examples
    --------
    >>> import numpy as np
    >>> import fastlmm_core as flc
    >>> rng = np.random.default_rng(1)
    >>> each = np.repeat(np.arange(1000), 100)
    >>> groups = np.tile(np.repeat(np.arange(20), 5), 1000)
    >>> x = rng.standard_normal(len(each))
    >>> y = 2.0 * x + rng.standard_normal((1000, 20))[each, groups] + rng.standard_normal(len(each))
    >>> result = flc.fit_each(y, np.column_stack([np.ones(len(x)), x]), None, groups, each)
    >>> result.params.shape
    (1000, 2)
    >>> bool(result.converged.all())
    True
    """
    response = float_array(y, "y", 1)
    design = arrays_design(
        len(response),
        X,
        Z,
        groups,
        weights,
        offset,
        structure,
        exog_names=exog_names,
        exog_re_names=exog_re_names,
        group_name=group_name,
    )
    try:
        problems = sorted_groups(each, "each") or group_codes(each, "each").count()
    except LMMError as error:
        raise LMMError(str(error).replace("groups", "each")) from None
    if len(problems.codes.codes) != len(response):
        raise LMMError(
            f"each has {len(problems.codes.codes)} rows but y has {len(response)}; give one row per observation"
        )
    return _fit(design, response, problems, reml, n_jobs, progress, out, resume)


@checked
def fit_by(
    formula: str,
    data: Any,
    by: str,
    *,
    weights: Any = None,
    offset: Any = None,
    missing: Literal["drop", "raise"] = "drop",
    reml: bool = True,
    n_jobs: int | None = None,
    progress: bool | None = None,
    out: Any = None,
    resume: EachResult | None = None,
) -> EachResult:
    """Fit one formula to each part of a table.

    Columns are made from the whole table: levels of a categorical column are those of all parts (what a part lacks is
    dropped there), and functions such as ``center(x)`` take the mean over all parts.

    Parameters
    ----------
    formula : str
        As for `lmm`.  With several grouping factors each part is fitted by itself, in some milliseconds.
    data : pandas.DataFrame, polars.DataFrame, pyarrow.Table or dict of arrays
    by : str
        Column that tells the parts apart.
    weights, offset, missing
        As for `lmm`.
    reml, n_jobs, progress, out, resume
        As for `fit_each`.

    Returns
    -------
    EachResult
        One problem per value of the column, sorted.

    Raises
    ------
    LMMError
        As `lmm`, for an unknown column, formulas with structured covariances, and what is left of a run of other
        problems.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> data["half"] = data["Subject"] > "340"
    >>> result = flc.fit_by("Reaction ~ Days + (1 | Subject)", data, by="half")
    >>> result.params.round(1).tolist()
    [[256.1, 8.6], [245.6, 12.9]]
    """
    from .formula.specification import model_data

    found = model_data(formula, data, weights=weights, offset=offset, missing=missing)
    options = {"weights": weights, "offset": offset, "missing": missing}
    design = design_of(found, Source(data, options))
    if design.structure.restricted:
        raise LMMError(
            "fit_by() takes random effects with free covariances; fit the parts one by one with lmm(formula, part)"
        )
    column = Table(data).column(by, "by")
    gaps = column.missing()
    if gaps is not None and (gaps if found.kept is None else gaps[found.kept]).any():
        raise LMMError(f"by={by!r}: the column has missing values; drop these rows or give them a label")
    codes, labels = column.codes(found.kept)
    parts = Codes(by, codes, 0, len(labels), labels).count()
    return _fit(design, np.asarray(found.y), parts, reml, n_jobs, progress, out, resume)


def _fit(
    design: Design, y: Array, problems: Grouping, reml: bool, n_jobs: int | None, progress: bool | None, out: Any,
    resume: Any,
) -> EachResult:  # fmt: skip
    from .estimation.many.stack import Stack
    from .inference.many.each import EachResult
    from .inference.many.values import Run, fit_all
    from .problem.columns import refuse_non_finite
    from .result import LMMResult

    design.check(len(y), True)
    stack = Stack(design, y, problems, LinearMixedModel)
    stack.seals = sealed_rows(design, y)
    empty = EachResult(stack, LMMResult, bool(reml))

    check = cache(partial(refuse_non_finite, y, design.exog, design.exog_re, design.weights, design.offset))
    run = Run(n_jobs, progress, out=out, resume=resume)
    return fit_all(empty, run, look=lambda first, last: check() or {})

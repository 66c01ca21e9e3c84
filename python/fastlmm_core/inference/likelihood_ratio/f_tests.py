"""F tests of one model against another whose fixed effects lie within its own, as pbkrtest's KRmodcomp has them.

With an orthonormal basis Q of the columns of X, X = Q R, the smaller model says that Q'X beta lies in the span of
Q'X_0, or N'R beta = 0 for a basis N of what is orthogonal to that span.  It is tested in the larger model, by REML
(Halekoh and Hojsgaard 2014, J. Stat. Softw. 59(9); Kuznetsova, Brockhoff and Christensen 2017, ibid. 82(13)).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...support.types import Array
from ..anova import f_statistic
from ..wald import wald
from ..wald_test import METHODS
from .nesting import nest, orthonormal
from .table import Row

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ...estimation.model import Model

__all__ = ["F_TESTS", "by_f", "f_row", "restriction"]


F_TESTS = ("kenward-roger", "satterthwaite")


def restriction(large: Model, small: Model) -> Array:
    """L (k, p) with L beta = 0 where the mean of the larger model is one of the smaller.

    Its rows are orthonormal, as lmerTest's and pbkrtest's: Satterthwaite's degrees of freedom depend on that.
    """
    X, inside = large.exog[:, large.problem.kept], small.exog[:, small.problem.kept]
    basis = orthonormal(X)
    within = basis.T @ orthonormal(inside) if inside.shape[1] else np.zeros((X.shape[1], 0))
    outside = np.linalg.svd(within)[0][:, inside.shape[1] :]
    L = np.zeros((X.shape[1] - inside.shape[1], large.exog.shape[1]))
    L[:, large.problem.kept] = np.linalg.qr((outside.T @ (basis.T @ X)).T)[0].T
    return L


def by_f(row: Row, fit: Fit, smaller: Fit, names: tuple[str, str], ddf: str) -> Row:
    """The row of a model with its F test against a smaller one.

    Parameters
    ----------
    row : Row
    fit, smaller : LMMResult
        The larger by REML.
    names : (str, str)
        What messages call the smaller and the larger model.
    ddf : {"kenward-roger", "satterthwaite"}
    """
    small, large = names
    nesting = nest(smaller.model, fit.model)
    if isinstance(nesting, str):
        return replace(row, null=f"No test: {small} is not nested in {large}, as {nesting}.")
    if nesting.df != nesting.fixed:
        return replace(row, null=f"No F test: {small} and {large} differ in their covariances.")
    if not nesting.fixed:
        return replace(row, null=f"No test: {small} and {large} have the same fixed effects.")
    return f_row(row, fit, restriction(fit.model, smaller.model), ddf)


def f_row(row: Row, fit: Fit, L: Array, ddf: str) -> Row:
    """The row of a model with the F test that L beta is zero in a fit."""
    if not len(L):
        return replace(row, null="No test: the data tell nothing of it beside the other terms.")
    found = wald(fit, L, None, ddf)
    said = f"F distribution, {METHODS[found.joint_ddf]}, REML"
    if found.left_out:
        said += f"; taken for known, at the boundary: {', '.join(found.left_out)}"
    return replace(
        row, statistic=f_statistic(found), df=found.df_num, df_denom=found.df_denom, pvalue=found.pvalue,
        p_std_error=math.nan if math.isnan(found.pvalue) else 0.0, null=said,
    )  # fmt: skip

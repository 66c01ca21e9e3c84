"""Options of tests and intervals: degrees of freedom and the information about the variance parameters."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ..design.independence import cluster_labels
from ..errors import LMMError
from ..estimation.model import Model
from ..support.hints import option
from ..support.types import Array

__all__ = ["DDF", "MOMENT_DDF", "Ddf", "Information", "Vcov", "check_options", "check_vcov", "known_df"]

Ddf = Literal["satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"]
Information = Literal["auto", "expected", "observed"]
Vcov = Literal["model", "CR0", "CR1", "CR2", "CR3"]

DDF: tuple[str, ...] = get_args(Ddf)

MOMENT_DDF = ("satterthwaite", "kenward-roger", "kenward-roger-linear")
"""Degrees of freedom that come from the uncertainty of the variance parameters."""


def check_options(ddf: str, information: str = "auto", robust: object = None) -> None:
    """Refuse unknown `ddf` or `information`, and Kenward and Roger's method for a robust covariance."""
    if ddf not in DDF:
        raise LMMError(
            f"ddf={ddf!r} is unknown: use {', '.join(map(repr, DDF[:-1]))} or {DDF[-1]!r}{option('ddf', ddf, DDF)}"
        )
    if information not in get_args(Information):
        raise LMMError(f"information={information!r} is unknown: use 'auto', 'expected' or 'observed'")
    if robust is not None and ddf.startswith("kenward-roger"):
        raise LMMError(
            f"ddf={ddf!r} adjusts the covariance of the model: with a robust one use ddf='satterthwaite' "
            "(vcov='CR2' is adjusted for small samples itself)"
        )


def check_vcov(vcov: str) -> None:
    """Refuse an unknown `vcov`."""
    if vcov not in get_args(Vcov):
        raise LMMError(f"vcov={vcov!r} is unknown: use 'model', or one of the robust 'CR0', 'CR1', 'CR2' and 'CR3'")


def known_df(model: Model, ddf: str, L: Array) -> Array:
    """Degrees of freedom that do not depend on the estimates, for rows of L (k, p): (k,).

    Between-within: of a coefficient whose column is constant within clusters m - (number of those with the intercept);
    of others, and of the intercept, n - m - (number of those without the intercept), the rank of X shared out like this
    between clusters and the rows within them (Schluchter and Elashoff 1990, J. Stat. Comput. Simul. 37, 69-87; SAS).
    A row has the smallest of the coefficients that it involves.
    """
    if ddf != "between-within":
        return np.full(len(L), float(model.df_resid) if ddf == "residual" else np.inf)
    own = model.once("between-within", lambda: _between_within(model))
    involved = (L != 0.0) & ~np.isnan(own)
    return np.asarray(np.where(involved, own, np.inf).min(axis=1, initial=np.inf))


def _between_within(model: Model) -> Array:
    """Degrees of freedom of each coefficient (p,), NaN for dropped columns."""
    labels = cluster_labels(model.design)
    m = int(labels.max()) + 1
    first = np.empty(m, dtype=np.intp)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    kept = model.problem.kept
    X = model.exog[:, kept]
    between = (X[first[labels]] == X).all(axis=0)
    intercept = (X[0] == X).all(axis=0)
    out = np.full(len(model.exog_names), np.nan)
    within_df = model.nobs - m - int((~between).sum())
    out[kept] = np.where(between & ~intercept, m - int(between.sum()), within_df)
    if not (out[kept] > 0.0).all():
        raise LMMError(
            f"ddf='between-within': {m} clusters and {model.nobs} observations leave no degrees of freedom between or "
            "within clusters; use ddf='satterthwaite'"
        )
    return out

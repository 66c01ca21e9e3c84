"""Options of tests and intervals: degrees of freedom and the information about the variance parameters."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ..errors import LMMError
from ..estimation.model import Model

__all__ = ["DDF", "Ddf", "Information", "Vcov", "check_options", "check_vcov", "known_df"]

Ddf = Literal["satterthwaite", "kenward-roger", "residual", "normal"]
Information = Literal["auto", "expected", "observed"]
Vcov = Literal["model", "CR0", "CR1", "CR2", "CR3"]

DDF: tuple[str, ...] = get_args(Ddf)


def check_options(ddf: str, information: str = "auto", robust: object = None) -> None:
    """Refuse unknown `ddf` or `information`, and Kenward and Roger's method for a robust covariance."""
    if ddf not in DDF:
        raise LMMError(f"ddf={ddf!r} is unknown: use {', '.join(map(repr, DDF[:-1]))} or {DDF[-1]!r}")
    if information not in get_args(Information):
        raise LMMError(f"information={information!r} is unknown: use 'auto', 'expected' or 'observed'")
    if robust is not None and ddf == "kenward-roger":
        raise LMMError(
            "ddf='kenward-roger' adjusts the covariance of the model: with a robust one use ddf='satterthwaite' "
            "(vcov='CR2' is adjusted for small samples itself)"
        )


def check_vcov(vcov: str) -> None:
    """Refuse an unknown `vcov`."""
    if vcov not in get_args(Vcov):
        raise LMMError(f"vcov={vcov!r} is unknown: use 'model', or one of the robust 'CR0', 'CR1', 'CR2' and 'CR3'")


def known_df(model: Model, ddf: str) -> float:
    """Degrees of freedom that are the same for every row."""
    return float(model.df_resid) if ddf == "residual" else np.inf

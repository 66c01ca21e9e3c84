"""Options of tests and intervals: degrees of freedom and the information about the variance parameters."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ..errors import LMMError
from ..estimation.model import Model

__all__ = ["DDF", "Ddf", "Information", "check_options", "known_df"]

Ddf = Literal["satterthwaite", "kenward-roger", "residual", "normal"]
Information = Literal["expected", "observed"]

DDF: tuple[str, ...] = get_args(Ddf)


def check_options(ddf: str, information: str = "expected") -> None:
    """Refuse unknown `ddf` or `information`."""
    if ddf not in DDF:
        raise LMMError(f"ddf={ddf!r} is unknown: use {', '.join(map(repr, DDF[:-1]))} or {DDF[-1]!r}")
    if information not in get_args(Information):
        raise LMMError(f"information={information!r} is unknown: use 'expected' or 'observed'")


def known_df(model: Model, ddf: str) -> float:
    """Degrees of freedom that are the same for every row."""
    return float(model.df_resid) if ddf == "residual" else np.inf

"""Progress bars: on in interactive sessions, off in scripts, unless asked for."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from ..errors import LMMError

__all__ = ["interactive", "progress_bar"]

DELAY = 1.0
"""Seconds of work before a bar that nobody asked for appears."""


def interactive() -> bool:
    """Whether somebody is watching: a prompt of Python or IPython, or a notebook."""
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules


def progress_bar(progress: bool | None, total: int | None, unit: str = "fit") -> Any:
    """A bar that counts pieces of work, None where there is to be none.

    Parameters
    ----------
    progress : bool or None
        None shows a bar in interactive sessions where tqdm is installed and the work takes more than a moment.
    total : int or None
    unit : str

    Returns
    -------
    tqdm bar or None

    Raises
    ------
    LMMError
        For progress=True without tqdm.
    """
    if progress is None and not interactive():
        return None
    if progress is False:
        return None
    try:
        with warnings.catch_warnings():
            # a notebook without its widgets gets a plain bar
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
    except ImportError:
        if progress is None:
            return None
        raise LMMError("progress=True needs tqdm: pip install 'fastlmm-core[progress]'") from None
    return tqdm(total=total, unit=unit, delay=DELAY if progress is None else 0.0)

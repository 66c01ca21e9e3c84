"""The one exception that this package raises for bad input."""

from __future__ import annotations

__all__ = ["LMMError"]


class LMMError(ValueError):
    """Bad input, refused before any computation.

    The message names the argument, the offending column, group or row, and the remedy.
    """

"""The kernels of many problems with designs of their own."""

from __future__ import annotations

from ._each import ProblemStack

__all__ = ["ProblemStack"]

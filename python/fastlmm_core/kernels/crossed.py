"""The compiled engine of crossed factors, which brings scipy's BLAS and LAPACK; loaded with the first such model."""

from __future__ import annotations

from ._crossed import CrossedEngine

__all__ = ["CrossedEngine"]

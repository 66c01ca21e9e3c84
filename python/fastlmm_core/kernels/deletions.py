"""The compiled kernels that refit after deletions; loaded by what deletes."""

from __future__ import annotations

from ._deletion import others_in_group, refit_deletions

__all__ = ["others_in_group", "refit_deletions"]

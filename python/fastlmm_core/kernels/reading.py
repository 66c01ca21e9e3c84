"""The compiled kernels that only models of rows read in pieces need."""

from __future__ import annotations

from ._slots import SlotTable

__all__ = ["SlotTable"]

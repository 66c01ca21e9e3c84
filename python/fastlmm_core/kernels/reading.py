"""The compiled kernels that only models of rows read in pieces need."""

from __future__ import annotations

from ._exact import add_products
from ._labels import TextTable
from ._slots import SlotTable

__all__ = ["SlotTable", "TextTable", "add_products"]

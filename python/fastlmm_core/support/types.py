"""Arrays of numbers and of places, as annotations name them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Index", "Int", "Int64"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Int = NDArray[np.intc]
Int64 = NDArray[np.int64]

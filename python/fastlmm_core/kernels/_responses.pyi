import numpy as np
from numpy.typing import NDArray

from .records.batches import BatchResults
from .records.residuals import VisitResponses

_Array = NDArray[np.float64]

class UnstructuredBatch:
    def __init__(self, design: VisitResponses) -> None: ...
    def fit(self, Y: _Array, first: int, reml: bool, constant: float, results: BatchResults) -> None: ...

import numpy as np
from numpy.typing import NDArray

from .records.residuals import VisitPatterns

_Array = NDArray[np.float64]

class UnstructuredSums:
    n_patterns: int
    n_tables: int
    c: int
    n_par: int
    n_rows: int
    def __init__(self, patterns: VisitPatterns, n_rows: int) -> None: ...
    def profile(self) -> tuple[_Array, float, _Array, _Array]: ...
    def crossed(self) -> _Array: ...

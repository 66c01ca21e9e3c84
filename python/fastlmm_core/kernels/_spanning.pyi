import numpy as np
from numpy.typing import NDArray

from .records import VisitPatterns

_Array = NDArray[np.float64]

def spanning_rows(rest: _Array, most: int, negligible: float) -> _Array | None: ...
def split_patterns(patterns: VisitPatterns, negligible: float) -> tuple[_Array, NDArray[np.intp], _Array]: ...

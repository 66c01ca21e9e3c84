import numpy as np
from numpy.typing import NDArray

from .records.deletions import DeletedLines, DeletionSums

_Array = NDArray[np.float64]
_Ints = NDArray[np.int64]

def refit_deletions(
    sums: DeletionSums, lines: DeletedLines, start: _Array, n_rows: int, tolerance: float, max_iterations: int
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array, _Ints]: ...
def others_in_group(
    Z: _Array, xy: _Array, weights: _Array | None, order: _Ints, starts: _Ints
) -> tuple[_Array, _Array]: ...

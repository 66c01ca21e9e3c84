import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_Ints = NDArray[np.int64]

def refit_deletions(
    table: _Array,
    parent: _Ints,
    variable: _Ints,
    n_lower: int,
    second: _Array,
    rows: _Ints,
    columns: _Ints,
    factor: _Array,
    k: int,
    reml: bool,
    n_rows: int,
    less: _Array,
    owner: _Ints,
    more: _Array | None,
    removed: _Ints,
    start: _Array,
    radius: float,
    rank_tolerance: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[_Array, _Array, _Array, _Array, _Array, _Array, _Ints]: ...
def others_in_group(
    Z: _Array, xy: _Array, weights: _Array | None, order: _Ints, starts: _Ints
) -> tuple[_Array, _Array]: ...

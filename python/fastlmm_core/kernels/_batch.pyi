from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]
_Int64 = NDArray[np.int64]
_Int = NDArray[np.intc]

class BatchDesign:
    def __init__(
        self,
        order: _Int64 | None,
        start: _Int64,
        basis: _Array,
        x: _Array | None,
        weights: _Array | None,
        offset: _Array | None,
        centre: bool,
        groups: _Int64,
        columns: _Int64,
        loading: _Array,
        R: _Array,
        cx: _Array,
        within_xx: _Array,
        exact: _Int,
        structure: _Int,
        rows: Sequence[int] | NDArray[np.intp],
        columns_of: Sequence[int] | NDArray[np.intp],
        first: _Array,
        scoring: _Array,
        x_map: _Array,
        ones: _Array,
        per_group: float,
        tolerance: float,
        max_iterations: int,
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def n_par(self) -> int: ...
    @property
    def p_full(self) -> int: ...
    def fit(
        self,
        Y: _Array,
        first: int,
        reml: bool,
        criterion_offset: float,
        start: _Array | None,
        theta: _Array,
        params: _Array,
        bse: _Array,
        sigma2: _Array,
        value: _Array,
        decrement: _Array,
        status: _Int,
        evaluations: _Int,
        df: _Array | None = None,
    ) -> None: ...
    def contrasts(
        self, Y: _Array, reml: bool, theta: _Array, rows: _Array
    ) -> tuple[_Array, _Array, _Array, _Array]: ...

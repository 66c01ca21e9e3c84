from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._newton import Objective

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

def aligned_zeros(size: int) -> _Array: ...
def pack(raw: _Array, order: _Index, z_map: _Array, xy_map: _Array) -> tuple[_Array, _Array]: ...

class ChainEngine(Objective):
    average: bool
    def __init__(
        self,
        packed: _Array,
        r: int,
        k: int,
        starts: Sequence[_Index],
        parents: Sequence[_Index],
        n_par: int,
        *args: Any,
        **options: Any,
    ) -> None: ...
    @property
    def r(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n_stages(self) -> int: ...
    def up(self, factors: _Array) -> tuple[float, _Array]: ...
    def down(
        self, factors: _Array, weight: _Array, first: int, second: bool = False, traces: bool = True, forms: int = 0
    ) -> tuple[_Array, _Array, _Array, _Array]: ...

import numpy as np
from numpy.typing import NDArray

from ._profiled import ProfiledEngine
from .layouts import Families
from .records import Positions

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]

def aligned_zeros(size: int) -> _Array: ...
def pack(raw: _Array, order: _Index, z_map: _Array, xy_map: _Array) -> tuple[_Array, _Array]: ...

class NestedEngine(ProfiledEngine):
    def __init__(
        self,
        packed: _Array,
        families: Families,
        within: _Array,
        gram: _Array,
        n_rows: int,
        parts: list[tuple[int, _Array]],
        structure: Positions,
        *rest: object,
    ) -> None: ...
    @property
    def r(self) -> int: ...
    @property
    def n_stages(self) -> int: ...
    def curvature(self) -> _Array: ...
    def cross(self) -> _Array: ...
    def traces(self, weight: _Array | None = None) -> _Array: ...
    def sandwich(self, weight: _Array) -> _Array: ...

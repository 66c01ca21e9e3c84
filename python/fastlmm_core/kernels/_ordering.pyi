import numpy as np
from numpy.typing import NDArray

from .layouts import Tail

_Array = NDArray[np.float64]
_Index = NDArray[np.intp]
_Slots = NDArray[np.int32]

class Quotient:
    def __init__(self, start: _Index, members: _Slots, width: _Index) -> None: ...

def minimum_degree(start: _Index, members: _Slots, width: _Index, share: float) -> tuple[_Index, _Index, _Slots]: ...
def spread_products(
    tail: Tail,
    first_slot: _Index,
    node_at: _Index,
    node_slot: _Index,
    node_start: _Index,
    node_slots: _Slots,
    node_panel: _Index,
    out: _Array,
) -> None: ...

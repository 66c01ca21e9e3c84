from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._profiled import ProfiledEngine
from .layouts import Layout
from .records import Positions

_Array = NDArray[np.float64]

class CrossedEngine(ProfiledEngine):
    def __init__(
        self,
        layout: Layout,
        cross: _Array,
        gram: _Array,
        n_rows: int,
        structure: Positions,
        average: bool = True,
    ) -> None: ...
    crew: Callable[[Any], None] | None
    @property
    def n_slots(self) -> int: ...
    @property
    def layout(self) -> Layout: ...
    def respond(self, cross: _Array, square: float) -> None: ...
    def gram_times(self, columns: _Array) -> _Array: ...
    def scores(self) -> _Array: ...
    def multiply(self, columns: _Array) -> _Array: ...
    def means(self, columns: _Array) -> _Array: ...
    def conditional(self, precision: bool = False) -> _Array: ...
    def precision_at(self, factor: _Array) -> _Array: ...

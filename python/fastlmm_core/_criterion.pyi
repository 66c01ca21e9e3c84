from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._newton import Objective

_Array = NDArray[np.float64]

def use_kernels(addresses: Sequence[int]) -> None: ...
def lanes() -> int: ...
def factor_groups(raw: _Array, z_transform: _Array, xy_transform: _Array) -> tuple[_Array, _Array]: ...
def group_effects(
    packed: _Array,
    n_groups: int,
    factor: _Array,
    contrast: _Array,
    precision: bool = False,
    conditional: bool = False,
) -> tuple[_Array, _Array | None]: ...

class ClusterCriterion(Objective):
    reml: bool
    n_evaluations: int
    def __init__(
        self,
        packed: _Array,
        within: _Array,
        n_rows: int,
        q: int,
        k: int,
        rows: Sequence[int] | NDArray[np.intp],
        columns: Sequence[int] | NDArray[np.intp],
        uniform: bool,
    ) -> None: ...
    @property
    def q(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    def rotate(self, turn: _Array | None = None) -> None: ...
    def evaluate(self, theta: ArrayLike, order: int = 0) -> tuple[float, _Array | None, _Array | None]: ...
    def solution(self) -> tuple[_Array, float, _Array, _Array]: ...
    def curvature(self) -> _Array: ...

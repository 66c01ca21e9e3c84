from typing import Any

import numpy as np
from numpy.typing import NDArray

def text_codes(
    data: NDArray[np.uint8], offsets: NDArray[Any], missing: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[Any]]: ...
def object_codes(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]] | None: ...

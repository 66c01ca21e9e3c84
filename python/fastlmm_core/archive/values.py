"""Values in JSON: text, numbers, truth values, None and lists as they are, all else as an object that names its kind.

``{"tuple": [...]}``, ``{"map": [[key, value], ...]}``, ``{"set": [...]}``, ``{"float": "nan"}`` (or ``"inf"``,
``"-inf"``) and ``{"array": [...], "type": "<f8"}``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import LMMError

__all__ = ["packed", "unpacked"]


def packed(value: Any, what: str) -> Any:
    """A value as JSON has it.

    Parameters
    ----------
    value : object
    what : str
        What a message calls it.

    Raises
    ------
    LMMError
        For objects of other types.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return value if isinstance(value, int) or math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [packed(item, what) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [packed(item, what) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": [packed(item, what) for item in sorted(value)]}
    if hasattr(value, "keys"):
        return {"map": [[packed(key, what), packed(item, what)] for key, item in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":  # times as counts of their unit
        return {"array": value.view(np.int64).tolist(), "type": value.dtype.str}
    if isinstance(value, np.ndarray):
        return {"array": [packed(item, what) for item in value.tolist()], "type": value.dtype.str}
    raise LMMError(
        f"{what} holds an object of type {type(value).__name__!r}, which the file format does not have; use pickle, or "
        "compute the column first"
    )


def unpacked(value: Any) -> Any:
    """The value that `packed` was given."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        return tuple(unpacked(item) for item in value["tuple"])
    if "set" in value:
        return frozenset(unpacked(item) for item in value["set"])
    if "map" in value:
        return {unpacked(key): unpacked(item) for key, item in value["map"]}
    items = [unpacked(item) for item in value["array"]]
    if value["type"][1] in "mM":
        return np.array(items, dtype=np.int64).view(value["type"])
    if value["type"] != "|O":
        return np.array(items, dtype=value["type"])
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out

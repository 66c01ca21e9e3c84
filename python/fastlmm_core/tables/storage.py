"""What the columns of each library hold: numbers, text, categories, and where they are missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..support.checks import object_floats
from .labels import arrow_text_codes, in_order, integer_codes, label_array, label_codes

__all__ = [
    "ARROW_TEXT", "arrow_nulls", "as_numbers", "declared_levels", "encode_labels", "from_sequence", "has_categories",
    "is_arrow_text", "is_encoded", "is_instance", "is_text", "library_of", "numbers_from_objects", "whole",
    "without_missing_entries",
]  # fmt: skip

Array = NDArray[Any]

ARROW_TEXT = ("string", "large_string")
"""Types of Arrow's text that is laid out as bytes and offsets."""


def is_instance(value: Any, library: str, *names: str) -> bool:
    """Whether `value` is an instance of a class of `library`, which is not imported for the question."""
    module = sys.modules.get(library)
    return module is not None and isinstance(value, tuple(getattr(module, name) for name in names))


def library_of(raw: Any) -> str | None:
    """Library of a series, None for anything that is not one."""
    root = type(raw).__module__.partition(".")[0]
    return root if root in ("pandas", "polars", "pyarrow") and hasattr(raw, "__len__") else None


def from_sequence(raw: Any, title: str) -> Array:
    """Array of a list, tuple or any other array-like."""
    if isinstance(raw, (str, bytes)) or not (isinstance(raw, Sequence) or hasattr(raw, "__array__")):
        raise LMMError(f"{title} is a {type(raw).__name__}; give a one-dimensional array or list.")
    try:
        array = np.asarray(raw)
    except Exception as error:  # whatever conversions may raise
        raise LMMError(f"{title} is not a one-dimensional array: {error}.") from error
    if array.dtype.kind in "US" and isinstance(raw, Sequence):
        array = np.asarray(raw, dtype=object)  # numpy would have turned a missing value into the text 'nan'
    return array


def is_text(raw: Any) -> bool:
    """Whether a column holds text or objects, without a declaration that these are labels."""
    library = library_of(raw)
    if library == "polars":
        return str(raw.dtype) in ("String", "Object")
    if library == "pyarrow":
        return str(raw.type) in (*ARROW_TEXT, "string_view")
    return getattr(raw.dtype, "kind", "") in "OUST" and not has_categories(raw)


def has_categories(raw: Any) -> bool:
    library = library_of(raw)
    if library == "pandas":
        return hasattr(raw.dtype, "categories")
    if library == "polars":
        return str(raw.dtype).startswith("Enum")
    if library != "pyarrow" or not is_encoded(raw):
        return False
    # an encoding of text that does not declare an order is text; of anything else it says that these are labels
    return raw.type.ordered or str(raw.type.value_type) not in (*ARROW_TEXT, "string_view")


def is_arrow_text(raw: Any) -> bool:
    """Whether a column of pyarrow holds text, as such or by a dictionary that declares no order."""
    if library_of(raw) != "pyarrow" or has_categories(raw):
        return False
    return str(raw.type.value_type if is_encoded(raw) else raw.type) in ARROW_TEXT


def is_encoded(raw: Any) -> bool:
    """Whether a column of pyarrow has a dictionary."""
    return hasattr(raw.type, "index_type")


def without_missing_entries(encoded: Any) -> Any:
    """A column of pyarrow whose missing values are missing in its rows, not as entries of its dictionaries."""
    arrow = importlib.import_module("pyarrow")
    if hasattr(encoded, "chunks"):
        return arrow.chunked_array([without_missing_entries(chunk) for chunk in encoded.chunks], encoded.type)
    entries = encoded.dictionary
    if not entries.null_count:
        return encoded
    there = entries.is_valid().to_numpy(zero_copy_only=False)
    places = arrow.array(np.cumsum(there) - 1, encoded.type.index_type, mask=~there)
    rows = places.take(encoded.indices)
    return arrow.DictionaryArray.from_arrays(rows, entries.drop_null(), ordered=encoded.type.ordered)


def arrow_nulls(raw: Any) -> Array | None:
    """Mask of the nulls of a column of pyarrow, None where there are none."""
    found: Array | None = raw.is_null().to_numpy(zero_copy_only=False) if raw.null_count else None
    return found


def declared_levels(raw: Any) -> list[Any] | None:
    """The levels that the type of a series lists, in its order; None for types that list none."""
    library = library_of(raw)
    if library == "pyarrow" and is_encoded(raw):
        levels: list[Any] = _arrow_codes(raw)[1].tolist()
        return levels
    return encode_labels(raw, "")[1].tolist() if has_categories(raw) else None


def as_numbers(raw: Any) -> tuple[Array, Array | None] | None:
    """Values and mask of nulls of a column whose dtype is numeric or boolean, None for other dtypes."""
    if isinstance(raw, np.ndarray):
        return (raw, None) if raw.dtype.kind in "iufb" else None
    null: Any = None
    library = library_of(raw)
    if library == "pandas":
        if isinstance(raw.dtype, np.dtype):
            return as_numbers(raw.to_numpy())
        kind = getattr(raw.dtype, "kind", "O")
        if kind == "f":
            return raw.to_numpy(dtype=np.float64, na_value=np.nan), None
        if kind not in ("i", "u", "b"):
            return None
        null = np.asarray(raw.isna())
        wanted = {"i": np.int64, "u": np.uint64, "b": np.bool_}[kind]
        values = raw.to_numpy(dtype=wanted, na_value=wanted(0))
        return values, null if null.any() else None
    if library == "polars":
        boolean = str(raw.dtype) == "Boolean"
        if raw.dtype.is_decimal():
            raw = raw.cast(importlib.import_module("polars").Float64)
        if not (boolean or raw.dtype.is_numeric()):
            return None
        if raw.null_count():
            null = raw.is_null().to_numpy()
            raw = raw.fill_null(False if boolean else 0)
        return raw.to_numpy(), null
    types, compute = importlib.import_module("pyarrow.types"), importlib.import_module("pyarrow.compute")
    if types.is_decimal(raw.type):
        raw = compute.cast(raw, "float64")
    boolean = types.is_boolean(raw.type)
    if not (boolean or types.is_integer(raw.type) or types.is_floating(raw.type)):
        return None
    if raw.null_count:
        null = compute.is_null(raw).to_numpy(zero_copy_only=False)
        raw = compute.fill_null(raw, False if boolean else 0)
    return raw.to_numpy(zero_copy_only=False), null


def numbers_from_objects(raw: Any, title: str) -> tuple[Array, Array | None] | None:
    """Values and mask of nulls of an object column that holds numbers or booleans only, else None."""
    import pandas as pd

    kind = pd.api.types.infer_dtype(raw, skipna=True)
    if kind not in ("integer", "floating", "mixed-integer-float", "decimal", "boolean"):
        return None
    null = np.asarray(pd.isna(raw))
    values = np.where(null, 0, np.asarray(raw, dtype=object))
    gaps = null if null.any() else None
    wanted = {"integer": np.int64, "boolean": np.bool_}.get(kind)
    try:
        return values.astype(np.float64 if wanted is None else wanted), gaps
    except OverflowError:  # integers beyond 64 bits
        return object_floats(values, title), gaps


def encode_labels(raw: Any, title: str) -> tuple[Array, Array]:
    """Codes (-1 where missing) and labels: in the order of the categories where declared, sorted otherwise."""
    library = library_of(raw)
    if library == "pyarrow":
        types = importlib.import_module("pyarrow.types")
        if types.is_dictionary(raw.type):
            if raw.type.ordered:
                return _arrow_codes(raw)
            codes, labels = _arrow_codes(raw)
            codes, used = integer_codes(codes)
            gaps = int(len(used) > 0 and used[0] < 0)
            return in_order(codes - gaps, labels[used[gaps:]], title)
        if types.is_string(raw.type) or types.is_large_string(raw.type):
            return arrow_text_codes(whole(raw))
        raw = raw.to_numpy(zero_copy_only=False)
    elif library == "polars":
        if has_categories(raw):
            codes = _signed(raw.to_physical())
            return codes, label_array(raw.dtype.categories.to_list())
        if str(raw.dtype) == "String" or str(raw.dtype).startswith("Categorical"):
            return _encode_polars_text(raw, title)
        raw = raw.to_numpy()
    if library == "pandas" and has_categories(raw):
        categorical = raw.array if hasattr(raw, "array") else raw
        return np.asarray(categorical.codes, dtype=np.intp), np.asarray(categorical.categories)
    if library == "pandas" and isinstance(raw.dtype, importlib.import_module("pandas").StringDtype):
        if raw.dtype.storage == "pyarrow":
            return arrow_text_codes(whole(importlib.import_module("pyarrow").array(raw)))
        raw = raw.to_numpy(dtype=object)
    elif library == "pandas" and raw.dtype == object:
        raw = raw.to_numpy()
    return label_codes(raw, title)


def whole(array: Any) -> Any:
    """An array of pyarrow in one piece, with one dictionary where it has some."""
    if not hasattr(array, "combine_chunks"):
        return array
    return (array.unify_dictionaries() if is_encoded(array) else array).combine_chunks()


def _arrow_codes(encoded: Any) -> tuple[Array, Array]:
    """Codes (-1 where missing) and labels of a dictionary of pyarrow, as they stand."""
    encoded = whole(encoded)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes.astype(np.intp), label_array(encoded.dictionary.to_pylist())


def _encode_polars_text(raw: Any, title: str) -> tuple[Array, Array]:
    physical = _signed(raw.cast(importlib.import_module("polars").Categorical).to_physical())
    codes, used = integer_codes(physical)
    row_of = np.empty(len(used), dtype=np.intp)
    row_of[codes] = np.arange(len(codes))
    labels = label_array(raw.gather(row_of).cast(importlib.import_module("polars").String).to_list())
    if len(used) and used[0] < 0:
        codes -= 1
        labels = labels[1:]
    return in_order(codes, labels, title)


def _signed(physical: Any) -> Array:
    """Codes of a polars series of physical values, nulls as -1."""
    return np.asarray(physical.cast(importlib.import_module("polars").Int64).fill_null(-1).to_numpy())

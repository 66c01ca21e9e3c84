"""Estimates of many fits with names for their dimensions."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...support.types import Array

if TYPE_CHECKING:
    from ...design.design import Design

__all__ = ["dataset"]


def dataset(
    one: str, labels: NDArray[Any], design: Design, by_term: Mapping[str, Array], covariance: Array,
    single: Mapping[str, NDArray[Any]],
) -> Any:  # fmt: skip
    """Estimates as an xarray Dataset.

    Parameters
    ----------
    one : str
        What a fit is of: the name of the first dimension.
    labels : (n,) array
    design : Design
        With the names of the columns.
    by_term : mapping of str to (n, p) arrays
    covariance : (n, q, q) array
        Of the random effects.
    single : mapping of str to (n,) arrays

    Raises
    ------
    LMMError
        Without xarray.
    """
    try:
        Dataset: Any = importlib.import_module("xarray").Dataset
    except ImportError:
        raise LMMError("to_xarray() needs xarray: pip install xarray; to_frame() does not") from None
    names = [
        f"{name}|{factor.grouping.name}"
        for factor in design.factors
        for name in design.exog_re_names[factor.start : factor.stop]
    ]
    found: dict[str, Any] = {name: ((one, "term"), values) for name, values in by_term.items()}
    found["covariance"] = ((one, "random", "random_too"), covariance)
    found |= {name: (one, np.asarray(values)) for name, values in single.items()}
    coords = {one: list(labels), "term": list(design.exog_names), "random": names, "random_too": names}
    return Dataset(found, coords=coords)

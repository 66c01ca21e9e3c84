"""The residual part of a model as plain values: a structure by its names, and where each row stands."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.residual import catalogue
from ..covariance.residual.correlation import Correlation
from ..covariance.residual.deviations import Common
from ..covariance.residual.distances import OfDistance
from ..covariance.residual.factor_analytic import FactorAnalytic
from ..covariance.residual.grouped_variance import GroupedVariance
from ..covariance.residual.independent import Independent
from ..covariance.residual.kronecker import Kronecker
from ..covariance.residual.log_linear import LogLinear
from ..covariance.residual.nugget import Nugget
from ..covariance.residual.scaled import Scaled
from ..covariance.residual.structure import ResidualStructure
from ..covariance.residual.variance_function import VarianceFunction
from ..covariance.residual.varied import Varied
from ..design.grouping import Codes
from ..design.residual import ResidualPart, WrittenVariance, strata_of
from ..errors import LMMError
from ..formula.variance import parse_variance
from .states import plain_state, state_of
from .values import packed, unpacked

__all__ = ["plain_residual", "plain_structure", "residual_of", "structure_of"]


def plain_structure(structure: ResidualStructure) -> dict[str, Any]:
    """A structure by its names and numbers."""
    if isinstance(structure, Varied):
        return {"variance": _plain_function(structure.function), "of": plain_structure(structure.inner)}
    if isinstance(structure, Kronecker):
        positions = structure.positions or 0
        responses = list(structure.labels_of_responses)
        return {"name": structure.name, "responses": responses, "visits": positions // len(responses)}
    if isinstance(structure, Scaled):
        inner: Correlation = structure.correlation
        nugget = isinstance(inner, Nugget)
        if isinstance(inner, Nugget):
            inner = inner.inner
        if isinstance(inner, OfDistance):
            limits = {"closest": float(inner.closest), "farthest": float(inner.farthest)}
            return {"name": structure.name, **limits, "nugget": nugget}
        if isinstance(inner, FactorAnalytic):
            return {"name": "fa", "factors": inner.q, "visits": inner.m}
    return {"name": structure.name, "visits": structure.positions}


def structure_of(found: dict[str, Any]) -> ResidualStructure:
    """The structure of plain values."""
    if "variance" in found:
        return Varied(_function_of(found["variance"]), structure_of(found["of"]))
    name = found["name"]
    if "responses" in found:
        return catalogue.of_responses(name.partition("@")[2], found["responses"], found["visits"])
    if "closest" in found:
        return catalogue.of_coordinates(name, found["closest"], found["farthest"], nugget=found["nugget"])
    if found["visits"] is None:
        return Scaled("id", Common(), Independent())
    return catalogue.of_positions(name, found["visits"], found.get("factors"))


def _plain_function(function: VarianceFunction) -> dict[str, Any]:
    if isinstance(function, GroupedVariance):
        return {"by": list(function.levels), "of": _plain_function(function.inner)}
    if isinstance(function, LogLinear):
        return {"columns": list(function.columns)}
    return {"name": function.name, "typical": float(getattr(function, "typical", 1.0))}


def _function_of(found: dict[str, Any]) -> VarianceFunction:
    if "by" in found:
        return GroupedVariance(_function_of(found["of"]), tuple(found["by"]))
    if "columns" in found:
        return LogLinear(tuple(found["columns"]))
    return catalogue.of_covariate(found["name"], found["typical"])


def plain_residual(part: ResidualPart, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """What the document holds of it; its arrays are added to those of the file.

    Raises
    ------
    LMMError
        For a structure that no name makes.
    """
    own = part.strata[0].structure
    plain = plain_structure(own)
    try:
        known = structure_of(plain) == own
    except LMMError:
        known = False
    if not known:
        raise LMMError(f"save() writes structures that names make, not {part.term}; use pickle for this one")
    arrays["residual_subject"] = np.asarray(part.subject.codes, dtype=np.int32)
    arrays["residual_stratum"] = part.stratum.astype(np.int32)
    arrays["residual_place"] = part.where.astype(np.int32) if part.where.dtype.kind == "i" else part.where
    return {
        "term": part.term,
        "structure": plain,
        "visits": list(part.labels),
        "time": part.time,
        "by": part.by,
        "strata": [stratum.label for stratum in part.strata],
        "subject": part.subject.name,
        "subjects": packed(part.subject.slot_labels, "the labels of the subjects"),
        "written": part.written,
        "variance": None if part.variance is None else _plain_variance(part.variance),
    }


def _plain_variance(variance: WrittenVariance) -> dict[str, Any]:
    side = None if variance.from_arrays else parse_variance(variance.text).side
    return {
        "text": variance.text,
        "from_arrays": variance.from_arrays,
        "state": None if side is None else plain_state(variance.state, side),
        "columns": None if variance.columns is None else variance.columns.tolist(),
    }


def _variance_of(found: dict[str, Any]) -> WrittenVariance:
    from_arrays = bool(found.get("from_arrays", False))
    side = None if from_arrays else parse_variance(found["text"]).side
    columns = found["columns"]
    return WrittenVariance(
        found["text"],
        None if side is None else state_of(found["state"], side),
        None if columns is None else np.array(columns, dtype=np.intp),
        from_arrays,
    )


def residual_of(found: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ResidualPart:
    """The residual part of a file."""
    labels = unpacked(found["subjects"])
    structure = structure_of(found["structure"])
    places = arrays["residual_place"]
    return ResidualPart(
        found["term"],
        strata_of([structure] * len(found["strata"]), found["strata"]),
        Codes(found["subject"], arrays["residual_subject"].astype(np.int64), 0, len(labels), labels),
        arrays["residual_stratum"].astype(np.intp),
        places.astype(np.intp) if places.dtype.kind == "i" else places,
        tuple(found["visits"]),
        found["time"],
        found["by"],
        found["written"],
        None if found["variance"] is None else _variance_of(found["variance"]),
    )

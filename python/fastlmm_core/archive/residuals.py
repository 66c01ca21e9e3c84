"""The residual part of a model as plain values: a structure of visits by its name, and where each row stands."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.residual.catalogue import of_positions, position_names
from ..design.grouping import Codes
from ..design.residual import ResidualPart, strata_of
from ..errors import LMMError
from .values import packed, unpacked

__all__ = ["plain_residual", "residual_of"]


def plain_residual(part: ResidualPart, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """What the document holds of it; its arrays are added to those of the file.

    Raises
    ------
    LMMError
        For structures of coordinates, and those that take more than the number of visits.
    """
    name, m = part.name, len(part.labels)
    own = part.strata[0].structure
    if not part.at_visits or name not in position_names() or of_positions(name, m) != own:
        raise LMMError(
            f"save() writes structures of visits by their names ({', '.join(position_names())}), not {part.term}; use "
            "pickle for this one"
        )
    arrays["residual_subject"] = np.asarray(part.subject.codes, dtype=np.int32)
    arrays["residual_stratum"] = part.stratum.astype(np.int32)
    arrays["residual_visit"] = part.where.astype(np.int32)
    return {
        "term": part.term,
        "structure": name,
        "visits": list(part.labels),
        "time": part.time,
        "by": part.by,
        "strata": [stratum.label for stratum in part.strata],
        "subject": part.subject.name,
        "subjects": packed(part.subject.slot_labels, "the labels of the subjects"),
    }


def residual_of(found: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ResidualPart:
    """The residual part of a file."""
    labels = unpacked(found["subjects"])
    structure = of_positions(found["structure"], len(found["visits"]))
    return ResidualPart(
        found["term"],
        strata_of([structure] * len(found["strata"]), found["strata"]),
        Codes(found["subject"], arrays["residual_subject"].astype(np.int64), 0, len(labels), labels),
        arrays["residual_stratum"].astype(np.intp),
        arrays["residual_visit"].astype(np.intp),
        tuple(found["visits"]),
        found["time"],
        found["by"],
    )

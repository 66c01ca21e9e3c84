"""The compiled kernels, with the fastest lane variant that this CPU runs.

Set the environment variable ``FASTLMM_KERNELS`` to ``base``, ``avx2`` or ``avx512`` before the
import to choose another (all give the same answers to rounding error).

This is what every model needs. `hierarchies`, `crossed`, `deletions` and `stacks` give the rest, so that their
libraries are loaded by the models that need them. No other module imports a compiled one. What they read of rows,
batches and orders of elimination is described in `records` and `layouts`.
"""

from __future__ import annotations

import os
from importlib import import_module

from ._batch import BatchDesign
from ._cpu import variants
from ._criterion import (
    ClusterCriterion,
    contracted,
    factor_alike,
    factor_groups,
    group_effects,
    group_moments,
    lanes,
    sandwich_map,
    solve_rows,
    unit_directions,
    use_kernels,
)
from ._labels import object_codes, text_codes
from ._masks import mask_labels
from ._matrices import (
    MANY,
    clear_exact,
    floored_factor,
    least_squares,
    log_diagonal,
    lower_factor,
    natural_map,
    orthogonal_columns,
    orthonormal,
    positive_inverse,
    rotation,
    row_moments,
    scale_map,
    smallest_parts,
    unpack,
    whitened_slopes,
    within_part,
    within_regression,
)
from ._newton import Objective, minimize_newton
from ._patterns import compress, pattern_bases, pattern_labels
from ._rows import accumulate, add_rows, code_range, column_scales, sample_mean, within_rows
from ._screen import balanced, falls, screen, vary_freely
from ._seals import line_seals
from ._single import condition_once
from ._sparse import sparse_seals, sparse_sums
from ._whiten import whiten_residuals

__all__ = [
    "MANY",
    "VARIANT",
    "BatchDesign",
    "ClusterCriterion",
    "Objective",
    "accumulate",
    "add_rows",
    "balanced",
    "clear_exact",
    "code_range",
    "column_scales",
    "compress",
    "condition_once",
    "contracted",
    "factor_alike",
    "factor_groups",
    "falls",
    "floored_factor",
    "group_effects",
    "group_moments",
    "lanes",
    "least_squares",
    "line_seals",
    "log_diagonal",
    "lower_factor",
    "mask_labels",
    "minimize_newton",
    "natural_map",
    "object_codes",
    "orthogonal_columns",
    "orthonormal",
    "pattern_bases",
    "pattern_labels",
    "positive_inverse",
    "rotation",
    "row_moments",
    "sample_mean",
    "sandwich_map",
    "scale_map",
    "screen",
    "smallest_parts",
    "solve_rows",
    "sparse_seals",
    "sparse_sums",
    "text_codes",
    "unit_directions",
    "unpack",
    "variants",
    "vary_freely",
    "whiten_residuals",
    "whitened_slopes",
    "within_part",
    "within_regression",
    "within_rows",
]


def _choose() -> str:
    available: list[str] = variants()
    wanted = os.environ.get("FASTLMM_KERNELS", available[0])
    if wanted not in available:
        raise ImportError(f"FASTLMM_KERNELS={wanted!r} is not available on this CPU; choose one of {available}")
    use_kernels(import_module(f"{__package__}._lanes_{wanted}").kernels())
    return wanted


VARIANT = _choose()
"""Name of the lane variant in use."""

"""The compiled sums of models with structured residuals, which bring scipy's BLAS; loaded with the first such model."""

from __future__ import annotations

from ._chains import ChainProducts, SubjectSums
from ._clusters import ClusterSums
from ._gaps import GapProducts
from ._responses import UnstructuredBatch
from ._subjects import pair_moments, pattern_rows, positions_of, visit_keys
from ._toeplitz import lag_correlations
from ._unstructured import UnstructuredSums
from ._visits import PatternSums, ScriptedObjective

__all__ = [
    "ChainProducts",
    "ClusterSums",
    "GapProducts",
    "PatternSums",
    "ScriptedObjective",
    "SubjectSums",
    "UnstructuredBatch",
    "UnstructuredSums",
    "lag_correlations",
    "pair_moments",
    "pattern_rows",
    "positions_of",
    "visit_keys",
]

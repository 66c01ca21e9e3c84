"""Fixes the thread counts that numerical libraries read once, when they are loaded: import this before numpy."""

from __future__ import annotations

import os

THREADS = os.environ.get("BENCH_THREADS", "1")
for name in (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
):
    os.environ[name] = THREADS

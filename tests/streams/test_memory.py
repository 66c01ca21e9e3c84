"""Rows four times the memory that there is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="limits are those of POSIX")

LIMIT = 48  # megabytes above what the process has mapped after a small fit

CODE = """
import os, resource, sys
import fastlmm_core as flc

folder, limit = sys.argv[1], int(sys.argv[2]) << 20
pieces, rows = 24, 1 << 18
child = os.fork()
if child == 0:  # what is mapped for the writing is not there afterwards
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    columns = {name: rng.integers(0, 200, rows) / 8.0 for name in ("y", "x", "z")}
    columns["g"] = np.sort(rng.integers(0, 512, rows))
    columns["y"] = columns["y"] + columns["x"] + (columns["g"] % 7)
    piece = pa.table(columns)
    with pq.ParquetWriter(folder + "/large.parquet", piece.schema) as file:
        for _ in range(pieces):
            file.write_table(piece)
    pq.write_table(piece.slice(0, rows // 2), folder + "/small.parquet")
    os._exit(0 if pieces * piece.nbytes >= 4 * limit else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
import pyarrow as pa, pyarrow.parquet as pq

formula = "y ~ x + z + (x | g)"
flc.lmm(formula, flc.scan(folder + "/small.parquet")).fit()  # libraries and threads are there
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + limit, resource.RLIM_INFINITY))
try:
    pq.read_table(folder + "/large.parquet")
    print("the limit does not bind")
except (MemoryError, OSError):
    print("too large for memory")
result = flc.lmm(formula, flc.scan(folder + "/large.parquet")).fit()
print(result.nobs == pieces * rows, result.converged, result.n_groups)
print(abs(result.params["x"] - 1.0) < 0.01)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_rows_four_times_the_memory(tmp_path):
    # Arrow's own allocators map a gigabyte before they need it
    own = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    own |= {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}  # stacks of threads count
    environment = {**os.environ, **own}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), str(LIMIT)], capture_output=True, text=True, env=environment
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["0", "too large for memory", "True True {'g': 512}", "True"]

"""Limits on memory: a fit is made, or ends with a MemoryError; the process goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from fastlmm_core.support.memory import blas_callers, granted, require

resource = pytest.importorskip("resource", reason="limits are those of POSIX")

# The process that forks has loaded the library and used no BLAS; each of its children fits under a limit of its own.
CODE = """
import os, resource, sys
import numpy as np
import fastlmm_core as flc

rng = np.random.default_rng(1)
n, m = 32_000, 4000
a, b = rng.integers(0, m, n), rng.integers(0, m, n)
X = np.empty((n, 2))
X[:, 0], X[:, 1] = 1.0, rng.standard_normal(n)
y = X[:, 1] + rng.standard_normal(m)[a] + rng.standard_normal(m)[b] + rng.standard_normal(n)
terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(None, b, "b")]
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
for extra in (10, 100, 200, 220, 235, 250, 700):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (size + (extra << 20), resource.RLIM_INFINITY))
        try:
            flc.LinearMixedModel(y, X, terms=terms).fit(options={"maxiter": 1})
            found = "fit"
        except MemoryError as error:
            found = "MemoryError " + str(error)
        except BaseException as error:
            found = type(error).__name__ + " " + str(error)
        os.write(1, f"{extra} {found}\\n".encode())
        os._exit(7)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 7:
        print(extra, "ended with", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_crossed_fit_under_a_limit():
    # what further threads of BLAS take would have to be added to the limits
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert len(found) == 7
    assert set(text.split()[0] for text in found.values()) == {"MemoryError", "fit"}
    assert found["700"] == "fit"
    assert "products of matrices" in found["10"]
    assert any("scipy's BLAS" in text for text in found.values())
    # the core is larger than what scipy's BLAS asks for and does not take; versions of scipy differ in what that is
    assert any(re.search(r"dense core of 3,\d{3} random effects", text) for text in found.values())


def test_what_is_not_granted_is_named():
    assert granted(1 << 20)
    assert not granted(1 << 62)
    require(1 << 21, "a little")
    with pytest.raises(MemoryError, match=r"a core of 9,000: 4,398,046,511,104 MB of memory are needed"):
        require(1 << 62, "a core of 9,000")
    assert blas_callers(4) == 4
    assert blas_callers(1) == 1

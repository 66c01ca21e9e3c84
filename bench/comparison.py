"""The exact null distribution of the test of one variance: 100,000 draws, beside RLRsim in R where it is installed.

The yardstick that is always there is the random numbers themselves: numpy's normal variables, one for each
eigenvalue and draw.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import _harness  # noqa: F401  (sets the number of threads before numpy is imported)

# isort: split
import numpy as np

from fastlmm_core import LinearMixedModel
from fastlmm_core.inference.likelihood_ratio.exact import draw, spectrum
from fastlmm_core.inference.likelihood_ratio.nesting import cones

DRAWS = 2_000 if "--smoke" in sys.argv else 100_000

R_SCRIPT = """
suppressMessages(library(RLRsim))
g <- rep(seq_len({m}), times = 2 + (seq_len({m}) %% 5)); n <- length(g)
set.seed(1); x <- rnorm(n); X <- cbind(1, x); Z <- model.matrix(~ 0 + factor(g))
t <- system.time(s <- RLRTSim(X, Z, qr(X), diag(ncol(Z)), nsim = {draws}))[["elapsed"]]
cat(t, mean(s == 0), quantile(s, 0.95))
"""


def ours(m: int, slopes: bool) -> tuple[float, float, np.ndarray]:
    """Seconds for eigenvalues and draws, seconds for as many normal variables, and the draws."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(m), 2 + np.arange(1, m + 1) % 5)
    X = np.column_stack([np.ones(len(groups)), rng.standard_normal(len(groups))])
    model = LinearMixedModel(rng.standard_normal(len(groups)), X, X[:, 1] if slopes else None, groups)
    cone = cones(model)[0]
    times = []
    for _ in range(1 if "--smoke" in sys.argv else 3):
        start = time.perf_counter()
        found = spectrum(X, cone, None)
        drawn = draw(found, DRAWS, 1, True)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(10):
        rng.standard_normal((DRAWS // 10, int(found.counts.sum())))
    return min(times), time.perf_counter() - start, drawn


def rlrsim(m: int) -> list[float] | None:
    """Seconds, share of zeros and 95 % quantile by RLRsim, None where it is not installed."""
    if shutil.which("Rscript") is None:
        return None
    run = subprocess.run(
        ["Rscript", "-e", R_SCRIPT.format(m=m, draws=DRAWS)], capture_output=True, text=True, check=False
    )
    return [float(word) for word in run.stdout.split()] if run.returncode == 0 else None


def main() -> int:
    for m, slopes in ((20, False), (200, False), (2000, False), (200, True)):
        seconds, normals, drawn = ours(m, slopes)
        what = "slopes, all different" if slopes else "intercepts"
        print(
            f"{m:>5} groups, {what}: {seconds:.3f} s for {DRAWS} draws, {seconds / normals:.2f} times the "
            f"{normals:.3f} s of one normal variable per group and draw; zeros {np.mean(drawn == 0.0):.3f}, "
            f"95 % {np.quantile(drawn, 0.95):.3f}"
        )
        if slopes or m > 200:
            continue
        found = rlrsim(m)
        if found is None:
            print("       RLRsim: not installed")
        else:
            print(
                f"       RLRsim: {found[0]:.3f} s ({found[0] / seconds:.1f} times ours); zeros {found[1]:.3f}, "
                f"95 % {found[2]:.3f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Power by simulation as users of simr ask for it: a fixed slope and an interaction, along the number of subjects.

Three designs with 1,000 simulations for each of ten sizes:

- the slope of a covariate that varies within subjects (random intercepts), z tests as simr's default;
- the same with random slopes and Kenward and Roger's t tests;
- the interaction of two arms with time (random slopes), by likelihood ratios, for which two models are fitted.

The yardstick is `rng.standard_normal` for as many numbers as the responses of all simulations have.  The powers are
checked against those of normal, noncentral t and chi-square distributions, as the designs are balanced.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import _harness

# isort: split
import numpy as np
from scipy import stats

import fastlmm_core as flc

SIZES = tuple(range(10, 101, 10))
TIMES = 10


def design(subjects: int) -> dict[str, Any]:
    """Subjects of two arms at ten times."""
    g = np.repeat(np.arange(subjects), TIMES)
    return {"g": g, "t": np.tile(np.arange(TIMES) - 4.5, subjects), "arm": (g % 2).astype(float)}


def slope() -> Any:
    return flc.assume("y ~ t + (1 | g)", design(10), [0.0, 0.05], [[1.0]], 1.0)


def random_slope() -> Any:
    G = {"sd": [1.0, 0.15], "corr": 0.3}
    return flc.assume("y ~ t + (t | g)", design(10), [0.0, 0.07], {"g": G}, 1.0)


def interaction() -> Any:
    G = {"sd": [1.0, 0.15], "corr": 0.3}
    return flc.assume("y ~ t * arm + (t | g)", design(10), [0.0, 0.05, 0.0, 0.1], {"g": G}, 1.0)


def exact(kind: str, subjects: int) -> float:
    """Power of the balanced designs: of z, t with m - 1 degrees of freedom, chi-square."""
    ss = float(((np.arange(TIMES) - 4.5) ** 2).sum())
    if kind == "slope":
        z = 0.05 / np.sqrt(1.0 / (ss * subjects))
        return float(stats.norm.cdf(z - 1.959964) + stats.norm.cdf(-z - 1.959964))
    variance = 0.15**2 + 1.0 / ss
    if kind == "random slope":
        df, ncp = subjects - 1, 0.07 / np.sqrt(variance / subjects)
        limit = stats.t.ppf(0.975, df)
        return float(stats.nct.sf(limit, df, ncp) + stats.nct.cdf(-limit, df, ncp))
    ncp = 0.1 / np.sqrt(4.0 * variance / subjects)
    return float(stats.ncx2.sf(3.841459, 1, ncp**2))


CASES = (
    ("slope", slope, "t", {"ddf": "normal"}),
    ("random slope", random_slope, "t", {"ddf": "kenward-roger"}),
    ("interaction", interaction, "t:arm", {"method": "lrt"}),
)


def main() -> int:
    parser = _harness.parser(__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    options = parser.parse_args()
    sizes, n_sim = (SIZES[:2], 100) if options.smoke else (SIZES, options.simulations)
    report = _harness.Report("power along subjects", _harness.environment())
    rows = []
    for kind, make, test, how in CASES:
        begin = time.perf_counter()
        curve = flc.power_curve(make(), test, values=sizes, n_sim=n_sim, seed=1, n_jobs=1, progress=False, **how)
        seconds = time.perf_counter() - begin
        wanted = np.array([exact(kind, size) for size in sizes])
        # likelihood ratios reject too often with few subjects: judged where there are some
        judged = np.array(sizes) >= (40 if kind == "interaction" else 10)
        off = np.abs(curve.power - wanted) / np.sqrt(wanted * (1.0 - wanted) / n_sim + 1e-6)
        if (off[judged] > 4.5).any():
            report.fail(f"{kind}: powers {curve.power.round(3).tolist()}, exact {wanted.round(3).tolist()}")
        numbers = TIMES * n_sim * sum(sizes)
        rng = np.random.default_rng(1)
        begin = time.perf_counter()
        for at in range(0, numbers, 2**16):
            rng.standard_normal(min(2**16, numbers - at))
        drawn = time.perf_counter() - begin
        ratio = seconds / drawn
        rows.append([
            kind, f"{n_sim * len(sizes):,}", _harness.format_seconds(seconds), f"{ratio:.2f}",
            f"{curve.power[0]:.3f} to {curve.power[-1]:.3f}",
        ])  # fmt: skip
    report.table(
        f"{n_sim:,} simulations of each of {len(sizes)} sizes",
        ("design", "simulations", "time", "x rng.standard_normal of the responses", "power"), rows,
    )  # fmt: skip
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

"""Trials with dropout: no fit over ten visits may fail, whatever the sample, the missing visits and the structure.

Two arms over ten visits with a random unstructured covariance, 200, 400 and 600 subjects, four levels of missing
visits; seeds that are odd lose visits by dropout, even ones here and there.  Each trial is fitted by REML with `us`,
`toeph`, `ar1h` and `csh`, a mean for each visit and arm and a covariate, and each fit has to be certified.
"""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

import _harness

# isort: split
import numpy as np

import fastlmm_core as flc

SIZES = (200, 400, 600)
MISSING = (0.0, 0.1, 0.2, 0.4)
STRUCTURES = ("us", "toeph", "ar1h", "csh")
VISITS = 10


class Data(NamedTuple):
    """Rows of subjects over visits."""

    y: np.ndarray
    x: np.ndarray
    subject: np.ndarray
    visit: np.ndarray


def trial(subjects: int, missing: float, seed: int) -> Data:
    """A trial of which `missing` is the share of subjects without the last visit, rising evenly from the first."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(VISITS, VISITS)) * 0.4 + np.eye(VISITS)
    Y = rng.normal(size=(subjects, VISITS)) @ root.T
    arm, base = rng.integers(0, 2, subjects), rng.normal(size=subjects)
    Y += base[:, None] + arm[:, None] * np.linspace(0.0, 1.0, VISITS)
    share = np.linspace(0.0, missing, VISITS)
    seen = rng.random((subjects, 1 if seed % 2 else VISITS)) >= share
    i, k = np.nonzero(seen)
    at = np.eye(VISITS)[k]
    return Data(Y[i, k], np.column_stack([at, at * arm[i, None], base[i]]), i, k)


def main() -> int:
    parser = _harness.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="trials of each size and level of missing visits")
    parser.add_argument("--first", type=int, default=0, help="the first seed, to run in parts")
    options = parser.parse_args()
    sizes, seeds = ((150,), 1) if options.smoke else (SIZES, options.seeds)
    report = _harness.Report("trials with dropout", _harness.environment())
    rows, total, failed = [], 0, 0
    for n in sizes:
        for missing in MISSING:
            counts, seconds = dict.fromkeys(STRUCTURES, 0), 0.0
            for seed in range(options.first, options.first + seeds):
                data = trial(n, missing, seed)
                for name in STRUCTURES:
                    begin = time.perf_counter()
                    residual = flc.Residual(name, data.subject, data.visit)
                    fit = flc.LinearMixedModel(data.y, data.x, residual=residual).fit()
                    seconds += time.perf_counter() - begin
                    total += 1
                    counts[name] += fit.converged
                    if not fit.converged:
                        failed += 1
                        report.fail(f"{n} subjects, {missing:.0%} missing, seed {seed}, {name}: {fit.message}")
            mean = _harness.format_seconds(seconds / (seeds * len(STRUCTURES)))
            rows.append([f"{n}", f"{missing:.0%}", *(str(counts[name]) for name in STRUCTURES), mean])
            print(f"{n} subjects, {missing:.0%} missing: {counts}, {mean} each", file=sys.stderr, flush=True)
    caption = f"Certified fits of {seeds} (seeds {options.first} to {options.first + seeds - 1})"
    report.table(caption, ("subjects", "missing at the last visit", *STRUCTURES, "mean time"), rows)
    report.target("fits that are not certified", float(failed), 0.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

"""Families of problems with several minima: how many certified fits are not the best that a dense search finds.

The families and the search are those of tests/landscapes.py: independent effects far from the origin, nested slopes,
weights over eight decades, errors like Cauchy's, few rows, several terms, nearly identical factors, and others.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import _harness

# isort: split
import numpy as np

TOLERANCE = 1e-6


def load_families() -> Any:
    """The generators of the tests, imported by their path (their name is also this script's)."""
    path = Path(__file__).parents[1] / "tests" / "landscapes.py"
    spec = importlib.util.spec_from_file_location("landscape_problems", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["landscape_problems"] = module
    spec.loader.exec_module(module)
    return module


def fit(problem: Any) -> Any:
    import fastlmm_core as flc

    terms = [
        flc.RandomTerm(t.Z, t.codes, name=t.factor, structure="full" if t.full else "diagonal") for t in problem.terms
    ]
    model = flc.LinearMixedModel(problem.y, problem.X, weights=problem.weights, terms=terms)
    return model.fit(reml=problem.reml)


def main() -> int:
    import fastlmm_core as flc

    parser = _harness.parser(__doc__)
    parser.add_argument("--problems", type=int, default=1000, help="problems of each family")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--families", nargs="*", help="some of the families (default: all)")
    options = parser.parse_args()
    landscapes = load_families()
    count = 2 if options.smoke else options.problems
    report = _harness.Report(f"{count} problems of each family with several minima", _harness.environment(None))
    rows = []
    wrong = 0
    for family in options.families or landscapes.FAMILIES:
        refused, uncertified, several, above, seconds = 0, 0, 0, [], []
        for seed in range(options.first, options.first + count):
            problem = landscapes.problem(family, seed)
            begin = time.perf_counter()
            try:
                result = fit(problem)
            except flc.LMMError:
                refused += 1
                continue
            seconds.append(time.perf_counter() - begin)
            several += len(result.optima) > 1
            excess = result.criterion - landscapes.lowest(problem)
            if not result.converged:
                uncertified += 1
            elif excess > TOLERANCE:
                above.append(excess)
                report.fail(f"{problem.name}: certified, {excess:.2e} above the best found")
        wrong += len(above)
        rows.append(
            (
                family,
                str(count),
                str(refused),
                str(uncertified),
                str(len(above)),
                f"{max(above, default=0.0):.1e}",
                str(several),
                _harness.format_seconds(float(np.median(seconds))) if seconds else "-",
            )
        )
        print(*rows[-1], flush=True)
    header = (
        "family",
        "problems",
        "refused",
        "not certified",
        "certified and wrong",
        "most above",
        "several",
        "median",
    )
    report.table("Fits against a dense search", header, rows)
    report.target("certified and wrong", float(wrong), 0.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

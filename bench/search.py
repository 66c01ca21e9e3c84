"""What looking for other minima costs: a fit with the search and the same fit told that nobody asks for it.

Both end at one optimum, or no time is shown.  Balanced designs are known to have one minimum, which is all that their
search finds out.  Batches: `fit_many` of responses drawn from a fit, against the same without a search,
by the least time of the processor over interleaved runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import _harness

# isort: split
import numpy as np

from _harness import Case
from _problems import Arrays, growth, sleepstudy_arrays


def problems(smoke: bool) -> Iterator[tuple[str, Arrays, float | None]]:
    """Name, data, and the largest ratio that is accepted; None where it is shown only."""
    data = sleepstudy_arrays()
    kept = np.ones(len(data.y), dtype=bool)
    kept[[3, 17, 40, 41, 90]] = False
    holes = Arrays(data.y[kept], data.x[kept], data.z[kept], data.codes[kept])
    yield "sleepstudy", data, 1.2
    yield "sleepstudy with holes", holes, None
    yield "one intercept, with holes", replace(holes, z=holes.z[:, :1].copy()), None
    for groups in (100, 200) if smoke else (100, 1_000, 100_000):
        yield f"{groups:,} groups, own times", growth(groups, times="own"), 1.1 if groups > 1_000 else None


def curves(groups: int, rows: int, q: int, structure: str = "full", holes: float | None = None) -> Any:
    """A model of curves over times of each group's own, or over shared times of which a share is missing."""
    import fastlmm_core as flc

    rng = np.random.default_rng(5)
    if holes is None:
        sizes = np.full(groups, q + 1)
        sizes += rng.multinomial(rows - sizes.sum(), np.full(groups, 1.0 / groups))
        codes = np.repeat(np.arange(groups), sizes)
        t = rng.uniform(-1.0, 1.0, rows)
    else:
        codes, t = np.repeat(np.arange(groups), rows // groups), np.tile(np.arange(float(rows // groups)), groups)
        kept = (rng.random(len(t)) >= holes) | (t < 2.0)
        codes, t = codes[kept], t[kept] / (rows // groups)
    z = t[:, None] ** np.arange(q)
    b = rng.standard_normal((groups, q)) * (1.5 / np.arange(1, q + 1))
    y = z.sum(axis=1) + np.sum(z * b[codes], axis=1) + rng.standard_normal(len(t))
    return flc.LinearMixedModel(y, z, z, codes, structure=structure)


def batches() -> Iterator[tuple[str, Callable[[], Any], float | None]]:
    """Name, a function that makes the model, and the largest ratio that is accepted; None where it is shown only."""
    yield "100 groups, own times, q = 2", lambda: curves(100, 600, 2), 1.2
    yield "200 groups, own times, q = 3", lambda: curves(200, 2_000, 3), 1.2
    yield "60 groups with holes, q = 2", lambda: curves(60, 360, 2, holes=0.1), 1.2
    yield "60 groups with holes, q = 2, independent", lambda: curves(60, 360, 2, "diagonal", 0.1), 1.2
    yield "60 groups with holes, q = 3, independent", lambda: curves(60, 360, 3, "diagonal", 0.1), 1.2
    yield "18 groups, own times, q = 2", lambda: curves(18, 90, 2), None


def time_batches(report: _harness.Report, smoke: bool, unasked: Any) -> None:
    shown = []
    for name, make, limit in batches():
        model, other = make(), make()
        count = 50 if smoke else min(4_000, 2_000_000 // model.nobs)
        Y = model.fit().simulate(count, seed=1)
        found = model.fit_many(Y, n_jobs=1)
        with unasked:
            # what the responses share, the screen too, is made at the first fits
            alone = other.fit_many(Y, n_jobs=1)
        if not (found.criterion <= alone.criterion + 1e-8 * np.abs(alone.criterion)).all():
            report.fail(f"{name}: a search ends at a higher minimum")
            continue
        seconds = [np.inf, np.inf]
        for _ in range(2 if smoke else 9):
            for i, one in enumerate((model, other)):
                begin = time.process_time()
                one.fit_many(Y, n_jobs=1)
                seconds[i] = min(seconds[i], time.process_time() - begin)
        ratio = seconds[0] / seconds[1]
        lower = int((found.criterion < alone.criterion - 1e-6).sum())
        shown.append((name, f"{ratio:.2f}", _harness.format_seconds(seconds[0] / count), f"{lower} of {count}"))
        if limit is not None:
            report.target(f"{name}: fit_many / fit_many without a search", ratio, limit)
    report.table("batches", ("", "fit_many / without a search", "per response", "lower by the search"), shown)


def main() -> int:
    import fastlmm_core as flc
    from fastlmm_core.engines.one_factor.problem import OneFactorProblem
    from fastlmm_core.engines.protocol import UNASKED

    options = _harness.parser(__doc__).parse_args()
    report = _harness.Report("search", _harness.environment())
    shown = []
    unasked = patch.object(OneFactorProblem, "elsewhere", lambda self: UNASKED)
    for name, data, limit in problems(options.smoke):

        def fit(data: Arrays = data) -> flc.LMMResult:
            return flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit()

        def alone(fit: Callable[[], flc.LMMResult] = fit) -> flc.LMMResult:
            with unasked:
                return fit()

        if not abs(fit().criterion - alone().criterion) <= 1e-8 * abs(fit().criterion):
            report.fail(f"{name}: the search found {fit().criterion}, the fit alone {alone().criterion}")
            continue
        cases = [Case("with", fit), Case("without", alone)]
        timings = _harness.interleave(cases, 2 if options.smoke else 15)
        ratio = timings.ratio("with", "without")
        if limit is None:
            shown.append((name, f"{ratio:.2f}"))
        else:
            report.target(f"{name}: fit / fit without a search", ratio, limit)
    report.table("where theory does not know", ("", "fit / fit without a search"), shown)
    time_batches(report, options.smoke, unasked)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

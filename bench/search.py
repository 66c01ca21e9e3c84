"""What looking for other minima costs: a fit with the search and the same fit told that nobody asks for it.

Both end at one optimum, or no time is shown.  Balanced designs are known to have one minimum, which is all that their
search finds out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
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
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

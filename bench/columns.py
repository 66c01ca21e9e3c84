"""Many fixed effects: a fit with Satterthwaite's tests of all of them, against least squares on the same X."""

from __future__ import annotations

import sys

import _harness

# isort: split
import numpy as np

from _problems import Arrays
from _reference import objection

LSTSQ = "np.linalg.lstsq"


def wide(n: int, p: int, groups: int, seed: int = 3) -> Arrays:
    """Random intercept and slope, p columns of noise."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.standard_normal((n, p - 1))])
    codes = rng.integers(0, groups, n)
    z = np.ascontiguousarray(x[:, :2])
    b = rng.standard_normal((groups, 2))
    y = 0.1 * x @ rng.standard_normal(p) + (z * b[codes]).sum(axis=1) + rng.standard_normal(n)
    return Arrays(y, x, z, codes)


def tested(data: Arrays):
    """A fit, and the p-value of every coefficient."""
    import fastlmm_core as flc

    result = flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit()
    assert np.isfinite(np.asarray(result.pvalues)).all()
    return result


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    report = _harness.Report("many fixed effects", _harness.environment())
    shapes = [(50_000, 30, 500), (50_000, 100, 500), (50_000, 300, 500), (5_000, 1_000, 50)]
    if options.smoke:
        shapes = [(600, 30, 20), (600, 100, 20)]
    for n, p, groups in shapes:
        data = wide(n, p, groups)
        ours = _harness.Case("fit and tests", lambda data=data: tested(data), _harness.answer_of)
        why = objection(ours.run(), data.y, data.x, data.z, data.codes)
        if why is not None:
            report.fail(f"{p} columns: {why}")
            continue
        yardstick = _harness.Case(LSTSQ, lambda data=data: np.linalg.lstsq(data.x, data.y, rcond=None))
        caption = f"{n:,} rows, {p:,} columns, {groups} groups"
        timings = report.compare(caption, ours, [yardstick], rounds=2 if options.smoke else 5)
        if timings is not None:
            report.target(f"fit and tests / lstsq, {p:,} columns", timings.ratio(ours.name, LSTSQ), 4.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

"""Many responses with several grouping factors: refits against single refits and the price of their random numbers.

One thread. Two crossed intercepts, 24 x 8 with holes (150 rows), and nested ones, 20 x 4 x 4, with much and with little
variation between levels; Kenward and Roger's and Satterthwaite's tests of one row.
"""

from __future__ import annotations

import sys
from typing import Any

import _harness

# isort: split
import numpy as np

from _harness import Case

RANDOM, ALONE = "rng.standard_normal", "refit, one by one"


def design(shape: str, seed: int = 5) -> Any:
    """A model and its grouping factors."""
    import fastlmm_core as flc

    rng = np.random.default_rng(seed)
    if shape == "crossed":
        codes = np.divmod(rng.permutation(24 * 8)[:150], 8)
    else:
        inner = np.repeat(np.arange(80), 4)
        codes = (inner, inner // 4)
    n = len(codes[0])
    X = np.column_stack([np.ones(n), rng.uniform(-1.0, 1.0, n)])
    y = X @ [1.0, 0.3] + rng.standard_normal(n) + sum(rng.standard_normal(code.max() + 1)[code] for code in codes)
    terms = [flc.RandomTerm(None, code, name=name) for code, name in zip(codes, "ab", strict=True)]
    return flc.LinearMixedModel(y, X, terms=terms)


def responses(model: Any, count: int, sd: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    Y = rng.standard_normal((count, model.nobs))
    for f in model.factors:
        Y += sd * rng.standard_normal((count, len(f.grouping.labels)))[:, f.grouping.index]
    return Y


def wrong(batch: Any, singles: list[Any]) -> str | None:
    """Why the fits of some responses are not those of single fits."""
    if not batch.converged.all():
        return f"{int((~batch.converged).sum())} of {len(batch)} fits are not certified"
    found = batch.test(np.eye(2)[1:], ddf="kenward-roger")
    for i, single in enumerate(singles):
        if abs(batch.criterion[i] - single.criterion) > 1e-8 * (1.0 + abs(single.criterion)):
            return f"response {i}: criterion {batch.criterion[i]} in place of {single.criterion}"
        own = single.test(np.eye(2)[1:], ddf="kenward-roger")
        if abs(found.df_denom[i] / own.df_denom - 1.0) > 1e-4:
            return f"response {i}: {found.df_denom[i]} degrees of freedom in place of {own.df_denom}"
    return None


def measure(report: _harness.Report, shape: str, limit: float, sd: float, count: int, rounds: int) -> None:
    model = design(shape)
    Y = responses(model, count, sd)
    some = Y[: max(20, count // 200)]
    batch = model.fit_many(Y, n_jobs=1)
    singles = [model.refit(y) for y in some]
    caption = f"{shape}, {model.nobs} rows, standard deviations {sd:g}"
    why = wrong(batch, singles)
    if why is not None:
        report.fail(f"{caption}: {why}")
        return
    rng = np.random.default_rng(2)
    row = np.eye(2)[1:]
    cases = [
        (Case("fit_many", lambda: model.fit_many(Y, n_jobs=1)), count),
        (Case("Kenward-Roger of one row", lambda: batch.test(row, ddf="kenward-roger")), count),
        (Case("Satterthwaite of one row", lambda: batch.test(np.array([[1.0, 1.0]]))), count),
        (Case(RANDOM, lambda: rng.standard_normal(Y.shape)), count),
        (Case(ALONE, lambda: [model.refit(y) for y in some]), len(some)),
    ]
    timings = _harness.interleave([case for case, _ in cases], rounds, 0.0)
    each = {case.name: timings.median(case.name) / n for case, n in cases}
    report.table(
        f"{caption} ({batch.n_evaluations.mean():.1f} evaluations each, {batch.singular.mean():.1%} singular)",
        ("", "per response", f"x {RANDOM}", "of a single refit"),
        [
            (
                name,
                _harness.format_seconds(own),
                f"{own / each[RANDOM]:.3g}",
                f"{own / each[ALONE]:.2g}",
            )
            for name, own in each.items()
        ],
    )
    report.target(f"fit_many / {RANDOM}, {caption}", each["fit_many"] / each[RANDOM], limit)
    report.target(f"{ALONE} / fit_many, {caption}", each[ALONE] / each["fit_many"], 20.0, at_least=True)


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    report = _harness.Report("many responses with several grouping factors", _harness.environment(None))
    count, rounds = (200, 2) if options.smoke else (5_000, 7)
    for shape, limits in (("crossed", (6.0, 12.0)), ("nested", (5.0, 9.0))):
        for sd, limit in zip((1.0, 0.3), limits, strict=True):
            measure(report, shape, limit, sd, count, rounds)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

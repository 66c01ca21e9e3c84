"""Many responses with several grouping factors: refits against single refits and the price of their random numbers.

One thread. Two crossed intercepts, 24 x 8 with holes (150 rows), and nested ones, 20 x 4 x 4, with much and with little
variation between levels; slopes of both factors, correlated with the intercepts and not, and of one, crossed and
nested; Kenward and Roger's and Satterthwaite's tests of one row.
"""

from __future__ import annotations

import sys
from typing import Any

import _harness

# isort: split
import numpy as np

from _harness import Case

SLOPES = (
    ("slopes", (2000.0, 7.0)),
    ("one slope", (700.0, 10.0)),
    ("independent slopes", (1500.0, 8.0)),
    ("nested slopes", (100.0, 25.0)),
    ("nested, one slope", (50.0, 40.0)),
)
"""Shapes, most normals of a response that a fit may cost, and how much longer at least a single refit takes."""

RANDOM, ALONE = "rng.standard_normal", "refit, one by one"


def design(shape: str, seed: int = 5) -> Any:
    """A model and its grouping factors."""
    import fastlmm_core as flc

    rng = np.random.default_rng(seed)
    if not shape.startswith("nested"):
        codes = np.divmod(rng.permutation(24 * 8)[:150], 8)
    else:
        inner = np.repeat(np.arange(80), 4)
        codes = (inner, inner // 4)
    n = len(codes[0])
    X = np.column_stack([np.ones(n), rng.uniform(-1.0, 1.0, n)])
    y = X @ [1.0, 0.3] + rng.standard_normal(n) + sum(rng.standard_normal(code.max() + 1)[code] for code in codes)
    structure = "diagonal" if "independent" in shape else "full"
    slopes = 0 if shape in ("crossed", "nested") else 1 if "one slope" in shape else 2
    terms = [
        flc.RandomTerm(X if i < slopes else None, code, name=name, structure=structure)
        for i, (code, name) in enumerate(zip(codes, "ab", strict=True))
    ]
    return flc.LinearMixedModel(y, X, terms=terms)


def responses(model: Any, count: int, sd: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    Y = rng.standard_normal((count, model.nobs))
    for f in model.factors:
        b = sd * rng.standard_normal((count, len(f.grouping.labels), f.stop - f.start))
        Y += np.einsum("rij,ij->ri", b[:, f.grouping.index], model.exog_re[:, f.columns])
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


def measure(
    report: _harness.Report, shape: str, limits: tuple[float, float], sd: float, count: int, rounds: int
) -> None:
    model = design(shape)
    Y = responses(model, count, sd)
    some = Y[: max(10, count // 200)]
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
    report.target(f"fit_many / {RANDOM}, {caption}", each["fit_many"] / each[RANDOM], limits[0])
    report.target(f"{ALONE} / fit_many, {caption}", each[ALONE] / each["fit_many"], limits[1], at_least=True)


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    report = _harness.Report("many responses with several grouping factors", _harness.environment(None))
    count, rounds = (40, 2) if options.smoke else (5_000, 7)
    for shape, limits in (("crossed", (6.0, 12.0)), ("nested", (5.0, 9.0))):
        for sd, limit in zip((1.0, 0.3), limits, strict=True):
            measure(report, shape, (limit, 20.0), sd, count, rounds)
    some, rounds = (20, 2) if options.smoke else (500, 5)
    for shape, limit in SLOPES:
        measure(report, shape, limit, 1.0, some, rounds)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

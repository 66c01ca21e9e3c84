"""One evaluation of the criterion with gradient and Hessian: 6,000 subjects, no two with the same times, q = 2, p = 5.

The yardstick is one numpy sum over as many bytes as the per-subject cross-products A_i and C_i occupy: nothing that
looks at every subject can be much cheaper.
"""

from __future__ import annotations

import itertools
import sys

import _harness

# isort: split
import numpy as np

from _harness import Case
from _reference import cross_products, objection, relative_factor, reml_criterion

Problem = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def problem(subjects: int, per_subject: int = 5, seed: int = 3) -> Problem:
    """y, X (five columns), Z (1, t) and codes; every subject has its own times."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(subjects), per_subject)
    n = codes.size
    t = rng.uniform(-1.0, 1.0, n)
    x = np.column_stack([np.ones(n), t, rng.standard_normal((n, 2)), rng.standard_normal(subjects)[codes]])
    z = np.ascontiguousarray(x[:, :2])
    b = rng.standard_normal((subjects, 2)) @ np.array([[1.0, 0.3], [0.0, 0.7]])
    y = x @ np.array([1.0, -0.5, 0.2, 0.0, 0.4]) + np.sum(z * b[codes], axis=1) + rng.standard_normal(n)
    return y, x, z, codes


def factor_of(theta: np.ndarray) -> np.ndarray:
    return np.array([[theta[0], 0.0], [theta[1], theta[2]]])


def wrong(model: object, theta: np.ndarray, data: Problem) -> str | None:
    """Compare value, gradient and Hessian with an independent criterion and its finite differences."""
    products = cross_products(*data)

    def value(point: np.ndarray) -> float:
        return reml_criterion(products, factor_of(point))

    found = model.evaluate(theta, reml=True, order=2)
    k, h = theta.size, 1e-3
    steps = h * np.eye(k)
    centre = value(theta)
    gradient = np.array([(value(theta + s) - value(theta - s)) / (2 * h) for s in steps])
    hessian = np.array(
        [
            [
                (value(theta + s + t) - value(theta + s - t) - value(theta - s + t) + value(theta - s - t))
                / (4 * h * h)
                for t in steps
            ]
            for s in steps
        ]
    )
    scale = np.max(np.abs(hessian))
    if abs(found.value - centre) > _harness.criterion_tolerance(centre):
        return f"value {found.value} instead of {centre}"
    if np.max(np.abs(found.gradient - gradient)) > 1e-4 * scale:
        return f"gradient {found.gradient} instead of {gradient}"
    if np.max(np.abs(found.hessian - hessian)) > 1e-4 * scale:
        return f"Hessian {found.hessian} instead of {hessian}"
    return None


def main() -> int:
    import fastlmm_core as flc

    options = _harness.parser(__doc__).parse_args()
    subjects, rounds = (100, 2) if options.smoke else (6_000, 31)
    data = problem(subjects)
    report = _harness.Report("one evaluation", _harness.environment())
    model = flc.LinearMixedModel(*data)
    result = model.fit(reml=True)
    why = objection(result, *data)
    at_optimum = relative_factor(result)[np.tril_indices(2)]
    elsewhere = at_optimum * np.array([1.3, 0.5, 0.8])
    for theta in (at_optimum, elsewhere):
        why = why or wrong(model, theta, data)
    if why is not None:
        report.fail(why)
        return report.finish(options)

    doubles = subjects * (3 + 2 * 6)
    memory = np.zeros(doubles)
    # No two successive calls ask for the same point: an answer that was remembered is not an evaluation.
    points = itertools.cycle([elsewhere * (1.0 + 1e-4 * i) for i in range(1000)])

    def evaluation(name: str, order: int) -> Case:
        return Case(name, lambda: model.evaluate(next(points), reml=True, order=order))

    full = evaluation("value + gradient + Hessian", 2)
    cases = [
        full,
        evaluation("value + gradient", 1),
        evaluation("value", 0),
        Case("np.sum over the cross-products", memory.sum),
    ]
    timings = _harness.interleave(cases, rounds)
    report.table(
        f"{subjects:,} subjects with distinct times, q = 2, p = 5 (fit: {result.n_evaluations} evaluations)",
        ("", "median", "per subject", "x np.sum"),
        [
            (
                case.name,
                _harness.format_seconds(timings.median(case.name)),
                _harness.format_seconds(timings.median(case.name) / subjects),
                f"{timings.ratio(case.name, cases[-1].name):.3g}",
            )
            for case in cases
        ],
    )
    report.target("value + gradient + Hessian", 1e3 * timings.median(full.name), 0.7, unit=" ms")
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

"""A million rows, 100,000 subjects, random slope, sorted and not: against least squares on the same X, and in memory.

Two million rows of a million subjects, with random intercepts, besides.

Least squares (numpy's lstsq, one thread) does not give the same answer: it is the yardstick. The fits are checked
against an independent evaluation of the criterion, and with shared times also against the least-squares coefficients,
which generalised least squares then reproduces exactly.
"""

from __future__ import annotations

import argparse
import json
import sys

import _harness

# isort: split
import numpy as np

from _peers import array_peers, fastlmm_arrays, fastlmm_formula, formula_peers, lmer_case, send_frame
from _problems import Arrays, growth
from _reference import objection

FORMULA = "y ~ t + (t | g)"
LSTSQ = "np.linalg.lstsq"
TWO = "fastlmm_core, two threads"

LIMITS = {"sorted": 4.0, "shuffled": 8.0}
"""Codes of text of each row's own beside the least that reading all of it takes."""


def least_squares_case(data: Arrays) -> _harness.Case:
    return _harness.Case(LSTSQ, lambda: np.linalg.lstsq(data.x, data.y, rcond=None))


def shuffled(data: Arrays) -> Arrays:
    """The rows in random order."""
    order = np.random.default_rng(2).permutation(data.y.size)
    x = data.x[order]
    return Arrays(data.y[order], x, x if data.z is data.x else data.z[order], data.codes[order])


def pairs(groups: int) -> Arrays:
    """Two rows of each subject, with a random intercept."""
    data = growth(groups, per_group=2, times="own")
    return Arrays(data.y, data.x, np.ones((data.y.size, 1)), data.codes)


def from_arrays(
    report: _harness.Report, times: str, order: str, limits: tuple[float, float], options: argparse.Namespace
) -> None:
    data = pairs(10 * options.groups) if times == "two" else growth(options.groups, times=times)
    if order == "shuffled":
        data = shuffled(data)
    ours = fastlmm_arrays(data)
    result = ours.run()
    why = objection(result, data.y, data.x, data.z, data.codes)
    if why is None and times == "shared":
        ols = np.linalg.lstsq(data.x, data.y, rcond=None)[0]
        if np.max(np.abs(ols - np.asarray(result.params)) / np.asarray(result.bse)) > 1e-6:
            why = "balanced data, but the fixed effects are not those of least squares"
    if why is not None:
        report.fail(f"{times} times, {order}: {why}")
        return
    peers, missing = array_peers(data, skip=("statsmodels",)) if order == "sorted" else ([], [])
    caption = f"From arrays, {data.y.size:,} rows, {data.codes.max() + 1:,} subjects, {times} times, {order}"
    others = [fastlmm_arrays(data, TWO, 2), least_squares_case(data), *peers]
    timings = report.compare(caption, ours, others, missing, options.rounds)
    if timings is not None:
        report.target(f"fit / lstsq, {times} times, {order}", timings.ratio(ours.name, LSTSQ), limits[0])
        if limits[1]:
            report.target(f"two threads / lstsq, {times} times, {order}", timings.ratio(TWO, LSTSQ), limits[1])


def from_frame(
    report: _harness.Report, labels: str, order: str, session: _harness.RSession | None, rounds: int, groups: int
) -> None:
    data = growth(groups, times="own")
    frame = (data if order == "sorted" else shuffled(data)).frame(labels)
    peers, missing = formula_peers(frame, "y", "t", "g", only=("mixedlm-rs",))
    if session is not None:
        send_frame(session, frame, "g")
        peers.append(lmer_case(session, FORMULA))
    caption = f"From a pandas frame and a formula, {len(frame):,} rows, {labels} labels, {order}"
    report.compare(caption, fastlmm_formula(FORMULA, frame), peers, missing, rounds)


def labels_of_objects(report: _harness.Report, order: str, rounds: int, groups: int) -> None:
    """Text with an object of each row's own to codes: against counting a reference to each object, which reads it."""
    from fastlmm_core.kernels import object_codes

    data = growth(groups, times="own")
    frame = (data if order == "sorted" else shuffled(data)).frame("string")
    text = np.array([label + "" for label in frame["g"].tolist()], dtype=object)
    codes, labels = object_codes(text)
    if not (labels[codes] == text).all() or sorted(labels) != labels.tolist():
        report.fail(f"labels, {order}: the codes are not those of the sorted labels")
        return
    cases = [_harness.Case("codes", lambda: object_codes(text)), _harness.Case("references", text.copy)]
    timings = _harness.interleave(cases, rounds)
    ratio = timings.ratio("codes", "references")
    report.target(f"codes of {text.size:,} labels / references, {order}", ratio, LIMITS[order])


def memory_child(times: str, groups: int) -> None:
    """In a fresh process: print the size of the inputs and the peak above it."""
    import fastlmm_core as flc

    small = growth(50, times=times)
    flc.LinearMixedModel(small.y, small.x, small.z, small.codes).fit(reml=True)  # loads what is loaded lazily
    data = growth(groups, times=times)
    converged = []
    extra = _harness.peak_extra_bytes(
        lambda: converged.append(flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit(reml=True).converged)
    )
    print(json.dumps({"inputs": data.nbytes, "extra": extra, "converged": bool(converged[0])}))


def memory(report: _harness.Report, groups: int) -> None:
    rows = []
    measured = {}
    for times in ("shared", "own"):
        record = _harness.measure_in_child(__file__, "--memory-child", times, "--groups", str(groups))
        if not record["converged"]:
            report.fail(f"memory, {times} times: not certified")
            continue
        measured[times] = record["extra"] / record["inputs"]
        rows.append(
            (
                f"{times} times",
                f"{record['inputs'] / 2**20:.1f} MiB",
                f"{record['extra'] / 2**20:.1f} MiB",
                f"{measured[times]:.2f}",
            )
        )
    report.table("Peak memory of construct + fit above the inputs", ("", "inputs", "extra", "extra / inputs"), rows)
    for times, ratio in measured.items():
        report.target(f"extra memory / inputs, {times} times", ratio, 1.5)


def main() -> int:
    parser = _harness.parser(__doc__)
    parser.add_argument("--groups", type=int, default=100_000, help="subjects of ten rows each")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow", action="store_true", help="time lmer too (more than ten seconds a call)")
    parser.add_argument("--memory-child", choices=("shared", "own"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_child:
        memory_child(options.memory_child, options.groups)
        return 0
    if options.smoke:
        options.groups, options.rounds = 200, 2
    session = _harness.open_lme4() if options.slow or options.smoke else None
    report = _harness.Report("a million rows", _harness.environment(session))
    # limits for one thread and for two; 0: none
    for times, order, limits in (
        ("shared", "sorted", (0.4, 0.3)), ("own", "sorted", (0.7, 0.55)), ("two", "sorted", (1.5, 0.0)),
        ("shared", "shuffled", (1.0, 0.0)), ("own", "shuffled", (1.2, 0.0)), ("two", "shuffled", (2.0, 0.0)),
    ):  # fmt: skip
        from_arrays(report, times, order, limits, options)
    for labels in ("integer", "string"):
        for order in ("sorted", "shuffled"):
            rivals = session if order == "sorted" else None
            from_frame(report, labels, order, rivals, min(options.rounds, 3 if rivals else 5), options.groups)
    for order in LIMITS:
        labels_of_objects(report, order, options.rounds, options.groups)
    memory(report, options.groups)
    if session is not None:
        session.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

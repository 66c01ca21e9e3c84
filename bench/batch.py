"""Many responses on one design: refits against the price of their random numbers, against lme4::refit and lme-python.

One thread unless a row says otherwise. The yardstick is `rng.standard_normal` for as many numbers as the responses
have.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _harness

# isort: split
import numpy as np

from _harness import Answer, Case
from _peers import installed
from _problems import sleepstudy_arrays, sleepstudy_frame
from _reference import cross_products, objection, reml_criterion

RANDOM = "rng.standard_normal"
CHECKED = 25
"""Responses whose batch fit is compared with a single fit before anything is timed."""


def own_times(subjects: int, rows: int, q: int, p: int, spread: float = 1.5, seed: int = 5) -> Any:
    """A model with random curves over times of each subject's own and group sizes that differ.

    A large `spread` of the curves keeps the fits off the boundary, a small one does not.
    """
    import fastlmm_core as flc

    rng = np.random.default_rng(seed)
    sizes = np.full(subjects, q + 1)
    sizes += rng.multinomial(rows - sizes.sum(), np.full(subjects, 1.0 / subjects))
    codes = np.repeat(np.arange(subjects), sizes)
    t = rng.uniform(-1.0, 1.0, rows)
    z = t[:, None] ** np.arange(q)
    extra = np.column_stack([rng.standard_normal((rows, 2)), rng.standard_normal((subjects, 2))[codes]])
    x = np.column_stack([z, extra])[:, :p]
    b = rng.standard_normal((subjects, q)) * (spread / np.arange(1, q + 1))
    y = x @ np.linspace(1.0, -1.0, p) + np.sum(z * b[codes], axis=1) + rng.standard_normal(rows)
    return flc.LinearMixedModel(y, x, z, codes)


def wrong(model: Any, Y: np.ndarray, batch: Any) -> str | None:
    """Why the fits of some responses are not those of single fits, themselves judged by an independent criterion."""
    if batch.converged.mean() < 0.999:
        return f"{int((~batch.converged).sum())} of {len(batch)} fits are not certified"
    for i in np.linspace(0, len(Y) - 1, min(CHECKED, len(Y))).astype(int):
        single = model.refit(Y[i])
        reference = _harness.answer_of(single)
        found = Answer(float(batch.criterion[i]), batch.params[i], batch.bse[i], bool(batch.converged[i]))
        why = _harness.disagreement(found, reference)
        if why is None and i == 0:
            why = objection(single, Y[i], model.exog, model.exog_re, model.grouping.index)
        if why is not None:
            return f"response {i}: {why}"
    return None


# ------------------------------------------------------------------------------------- the price of random numbers


def against_random_numbers(
    report: _harness.Report,
    caption: str,
    model: Any,
    count: int,
    limit: float,
    rounds: int,
    threads: bool = False,
) -> None:
    result = model.fit()
    Y = result.simulate(count, seed=1)
    batch = model.fit_many(Y, n_jobs=1)
    why = wrong(model, Y, batch)
    if why is not None:
        report.fail(f"{caption}: {why}")
        return
    rng = np.random.default_rng(2)
    ours = Case("fit_many", lambda: model.fit_many(Y, n_jobs=1))
    numbers = Case(RANDOM, lambda: rng.standard_normal(Y.shape))
    drawn = Case("simulate_fit (draw and fit)", lambda: result.simulate_fit(count, 1, n_jobs=1))
    cases = [ours, numbers, drawn]
    two = Case("fit_many, two threads", lambda: model.fit_many(Y, n_jobs=2))
    if threads:
        cases.append(two)
    timings = _harness.interleave(cases, rounds, 0.0)
    report.table(
        f"{caption}: {count:,} responses of {model.nobs} observations"
        f" ({batch.n_evaluations.mean():.1f} evaluations each, {batch.singular.mean():.1%} singular)",
        ("", "median", "per response", f"x {RANDOM}"),
        [
            (
                case.name,
                _harness.format_seconds(timings.median(case.name)),
                _harness.format_seconds(timings.median(case.name) / count),
                f"{timings.ratio(case.name, RANDOM):.3g}",
            )
            for case in cases
        ],
    )
    report.target(f"fit_many / {RANDOM}, {caption}", timings.ratio(ours.name, RANDOM), limit)
    if threads:
        report.target(f"simulate_fit / {RANDOM}, {caption}", timings.ratio(drawn.name, RANDOM), 0.6)
        report.target("one thread / two threads", timings.ratio(ours.name, two.name), 1.8, at_least=True)


def without_effects(report: _harness.Report, caption: str, model: Any, count: int, rounds: int) -> None:
    """Responses without random effects, nearly all of them singular, against responses from the model."""
    inside, none = model.fit().simulate(count, seed=1), np.random.default_rng(2).standard_normal((count, model.nobs))
    batch = model.fit_many(none, n_jobs=1)
    why = wrong(model, none, batch)
    if why is not None:
        report.fail(f"{caption}: {why}")
        return
    cases = [Case(name, lambda Y=Y: model.fit_many(Y, n_jobs=1)) for name, Y in (("none", none), ("inside", inside))]
    timings = _harness.interleave(cases, rounds, 0.0)
    alone = float(batch.alone.mean())
    report.table(
        f"{caption}, no random effects: {batch.singular.mean():.0%} singular, {alone:.1%} fitted by themselves",
        ("", "per response"),
        [(case.name, _harness.format_seconds(timings.median(case.name) / count)) for case in cases],
    )
    report.target(f"without / with random effects, {caption}", timings.ratio("none", "inside"), 1.5)


def with_and_without_search(report: _harness.Report, caption: str, model: Any, count: int, rounds: int) -> None:
    """What the search for other minima costs: fit_many against the lanes alone, where these certify all responses."""
    from fastlmm_core.estimation.fit import Fit
    from fastlmm_core.estimation.many.batch_fit import BatchFit
    from fastlmm_core.estimation.many.looks import in_lanes
    from fastlmm_core.estimation.many.one_factor import shared_design

    Y, shared = model.fit().simulate(count, seed=1), shared_design(model)

    def alone() -> Any:
        found = BatchFit(model, Fit, True, count, None)
        in_lanes(shared, Y, found, 0)
        return found

    batch, found = model.fit_many(Y, n_jobs=1), alone()
    if not found.converged.all() or (batch.criterion > found.criterion + 1e-9).any():
        report.fail(f"{caption}: the lanes do not certify all, or a search ends at a higher minimum")
        return
    cases = [Case("fit_many", lambda: model.fit_many(Y, n_jobs=1)), Case("without a search", alone)]
    timings = _harness.interleave(cases, rounds, 0.0)
    report.table(
        f"{caption}: {count:,} responses, {int((batch.criterion < found.criterion - 1e-6).sum())} lower by the search",
        ("", "per response"),
        [(case.name, _harness.format_seconds(timings.median(case.name) / count)) for case in cases],
    )
    report.target(f"fit_many / without a search, {caption}", timings.ratio(cases[0].name, cases[1].name), 1.5)


# ------------------------------------------------------------------------------------------------------- the rivals


def lme4_refit(
    session: _harness.RSession, formula: str, model: Any, Y: np.ndarray
) -> tuple[Case, Callable[[int], Answer]]:
    """One lme4::refit after the other over the responses, and the answer for one of them.

    The criterion is evaluated at the theta that refit gives: lme4 1.1-31 reports another number there (larger by some
    8 for sleepstudy), and what it minimises is off by little enough that the estimates can be compared.
    """
    session.assign("responses", np.ascontiguousarray(Y).ravel())
    session.eval(f"{{responses <- matrix(responses, nrow = {Y.shape[1]}); NULL}}")
    session.eval(f"{{fitted_once <- lmer({formula}, d); turn <- 0; NULL}}")
    case: Any = _harness.RCase(
        "lme4::refit", session,
        f"function() {{ turn <<- turn %% {len(Y)} + 1; refit(fitted_once, newresp = responses[, turn]) }}",
    )  # fmt: skip

    def answer(i: int) -> Answer:
        values = session.numbers(
            f'{{m <- refit(fitted_once, newresp = responses[, {i + 1}]); c(getME(m, "theta"), fixef(m))}}'
        )
        q = model.exog_re.shape[1]
        factor = np.zeros((q, q))
        factor[np.triu_indices(q)[::-1]] = values[: q * (q + 1) // 2]
        products = cross_products(Y[i], model.exog, model.exog_re, model.grouping.index)
        return Answer(reml_criterion(products, factor), values[q * (q + 1) // 2 :])

    return case, answer


def lme_python_refit(formula: str, Y: np.ndarray) -> tuple[Case, Callable[[int], Answer]]:
    """Fits of a prepared model (lme-python's shortest way to a refit), one after the other."""
    import lme_python
    import polars

    prepared = lme_python.prepare_lmer(formula, polars.from_pandas(sleepstudy_frame()))
    turn = [0]

    def run() -> Any:
        turn[0] = (turn[0] + 1) % len(Y)
        return lme_python.fit_prepared(prepared, True, y=Y[turn[0]])

    def answer(i: int) -> Answer:
        found = lme_python.fit_prepared(prepared, True, y=Y[i])
        return Answer(float(found.reml_criterion), np.array(found.coefficients, float), converged=found.converged)

    return Case("lme-python, fit_prepared", run), answer


def against_rivals(
    report: _harness.Report,
    session: _harness.RSession | None,
    bars: str,
    limits: dict[str, float],
    count: int,
    rounds: int,
) -> None:
    import fastlmm_core as flc

    formula = f"Reaction ~ Days + {bars}"
    model = flc.lmm(formula, sleepstudy_frame())
    Y = model.fit().simulate(count, seed=1)
    batch = model.fit_many(Y, n_jobs=1)
    why = wrong(model, Y, batch)
    if why is not None:
        report.fail(f"{formula}: {why}")
        return
    few = Y[:CHECKED]
    found, rows, missing = [], [], []
    if session is not None:
        found.append(lme4_refit(session, formula, model, few))
    else:
        missing.append("lme4 (R)")
    if installed("lme_python"):
        found.append(lme_python_refit(formula, few))
    else:
        missing.append("lme-python")
    ours = Case("fit_many", lambda: model.fit_many(Y, n_jobs=1))
    single = Case("model.refit", lambda: model.refit(Y[0]))
    peers = []
    for case, answer in found:
        refusals = [
            why
            for i in range(len(few))
            if (
                why := _harness.disagreement(
                    answer(i), Answer(float(batch.criterion[i]), batch.params[i], batch.bse[i])
                )
            )
        ]
        # an optimiser that stops early now and then is timed all the same, and said to do so
        if len(refusals) > len(few) // 5:
            rows.append((case.name, "-", f"refused: {refusals[0]}", "-"))
            continue
        if refusals:
            case.note = f" ({len(refusals)} of {len(few)} answers differ)"  # type: ignore[attr-defined]
        peers.append(case)
    timings = _harness.interleave([ours, single, *peers], rounds)
    each = timings.column(ours.name) / count
    table = [(ours.name, _harness.format_seconds(float(np.median(each))), "", "1")]
    for case in (single, *peers):
        ratio = float(np.median(timings.column(case.name) / each))
        name = case.name + getattr(case, "note", "")
        table.append((name, _harness.format_seconds(timings.median(case.name)), "", f"{ratio:,.0f}"))
    table += rows + [(name, "-", "not installed", "-") for name in missing]
    report.table(f"{formula}: one refit", ("", "per response", "", "x fit_many"), table)
    for case in peers:
        if case.name in limits:
            ratio = float(np.median(timings.column(case.name) / each))
            report.target(f"{case.name} / fit_many, {bars}", ratio, limits[case.name], at_least=True)


# ------------------------------------------------------------------------------------------- bootstrap, power curve


def bootstrap(report: _harness.Report, count: int, rounds: int) -> None:
    import fastlmm_core as flc

    result = flc.lmm("Reaction ~ Days + (Days | Subject)", sleepstudy_frame()).fit()
    boot = result.bootstrap(count, seed=1, n_jobs=1)
    # balanced and X = Z: the true standard errors of beta are those of the fit
    error = np.max(np.abs(boot.std_error[:2] / np.asarray(result.bse) - 1.0))
    if not (boot.converged.mean() > 0.999 and error < 5.0 / np.sqrt(2.0 * count)):
        report.fail(f"bootstrap: standard errors differ from those of the model by {error:.2g}")
        return
    one = Case("bootstrap", lambda: result.bootstrap(count, seed=1, n_jobs=1))
    two = Case("bootstrap, two threads", lambda: result.bootstrap(count, seed=1, n_jobs=2))
    cases = Case("bootstrap, kind='cases'", lambda: result.bootstrap(count // 10, "cases", seed=1))
    timings = _harness.interleave([one, two, cases], rounds, 0.0)
    report.table(
        f"sleepstudy, {count:,} parametric replicates ({count // 10:,} of cases)",
        ("", "median", "per replicate"),
        [
            (
                case.name,
                _harness.format_seconds(timings.median(case.name)),
                _harness.format_seconds(timings.median(case.name) / number),
            )
            for case, number in ((one, count), (two, count), (cases, count // 10))
        ],
    )
    report.target(f"bootstrap(n={count:_})", timings.median(one.name), 0.02, unit=" s")


def power(report: _harness.Report, n_sim: int, rounds: int) -> None:
    import fastlmm_core as flc

    if not installed("fastlmm_core.planning.curves"):
        print("\nPower curve: not in this version")
        return
    from fastlmm_core.planning.curves import power_curve

    result = flc.lmm("Reaction ~ Days + (Days | Subject)", sleepstudy_frame()).fit()
    sizes = list(range(6, 26, 2)) if n_sim > 100 else [6, 12]

    def run(n_jobs: int) -> Any:
        # an effect of a third of the estimate keeps the power away from one
        effect = float(np.asarray(result.params)[1]) / 3.0
        return power_curve(result, "Days", "subjects", sizes, effect=effect, n_sim=n_sim, seed=1, n_jobs=n_jobs)

    run(1)
    one, two = Case("power_curve", lambda: run(1)), Case("power_curve, two threads", lambda: run(2))
    timings = _harness.interleave([one, two], rounds, 0.0)
    report.table(
        f"sleepstudy, {len(sizes)} sizes, {n_sim:,} simulations each",
        ("", "median"),
        [(case.name, _harness.format_seconds(timings.median(case.name))) for case in (one, two)],
    )
    report.target(f"power_curve, {len(sizes)} sizes x {n_sim:,}", timings.median(one.name), 1.0, unit=" s")


# ----------------------------------------------------------------------------------------------------------- memory


def _private_bytes() -> int | None:
    """Resident memory of the process alone: the pages of mapped files are the system's cache."""
    return _harness._status_bytes("RssAnon")


def memory_child(path: str) -> None:
    """In a fresh process: fit the responses in the file and print the peak."""
    import fastlmm_core as flc

    data = sleepstudy_arrays()
    model = flc.LinearMixedModel(data.y, data.x, data.z, data.codes)
    model.fit_many(model.fit().simulate(1000, seed=1), n_jobs=1)  # loads what is loaded lazily
    before = _private_bytes()
    peak, done = [before or 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.append(_private_bytes() or 0)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    batch = model.fit_many(np.load(path, mmap_mode="r"), n_jobs=1)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    results = sum(value.nbytes for value in vars(batch).values() if type(value) is np.ndarray)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "results": results,
                "extra": None if before is None else max(0, max(peak) - before - results),
                "certified": float(batch.converged.mean()),
                "criterion": [float(batch.criterion[0]), float(batch.criterion[-1])],
            }
        )
    )


def memory(report: _harness.Report, count: int) -> None:
    import fastlmm_core as flc

    data = sleepstudy_arrays()
    model = flc.LinearMixedModel(data.y, data.x, data.z, data.codes)
    result, step = model.fit(), 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "responses.npy"
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(count, model.nobs))
        for begin in range(0, count, step):
            file[begin : begin + step] = result.simulate(min(step, count - begin), seed=begin)
        file.flush()
        ends = [model.refit(np.array(file[i])).criterion for i in (0, -1)]
        del file
        record = _harness.measure_in_child(__file__, "--memory-child", str(path))
        size = path.stat().st_size
    if record["certified"] < 0.999 or not np.allclose(record["criterion"], ends, rtol=1e-9):
        report.fail(f"memory: the fits from the file are not those of single fits ({record})")
        return
    if record["extra"] is None:
        print("\nMemory: not measured on this system")
        return
    report.table(
        f"{count:,} responses of {model.nobs} observations from a memory-mapped file",
        ("", "value"),
        [
            ("file", f"{size / 1e6:,.0f} MB"),
            ("time", _harness.format_seconds(record["seconds"])),
            ("results", f"{record['results'] / 1e6:,.1f} MB"),
            ("peak besides the results", f"{record['extra'] / 1e6:,.1f} MB"),
        ],
    )
    report.target("peak memory besides the results", record["extra"] / 1e6, 300.0, unit=" MB")


def main() -> int:
    parser = _harness.parser(__doc__)
    parser.add_argument("--memory-child", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--responses", type=int, default=1_000_000, help="responses in the file of the memory table")
    options = parser.parse_args()
    if options.memory_child:
        memory_child(options.memory_child)
        return 0
    import fastlmm_core as flc

    smoke = options.smoke
    rounds = 2 if smoke else 9
    session = _harness.open_lme4()
    report = _harness.Report("many responses on one design", _harness.environment(session))
    data = sleepstudy_arrays()
    model = flc.LinearMixedModel(data.y, data.x, data.z, data.codes)
    against_random_numbers(report, "sleepstudy", model, 200 if smoke else 100_000, 0.3, rounds, threads=True)
    model = own_times(100, 600, 2, 4)
    against_random_numbers(report, "own times, q = 2, p = 4", model, 200 if smoke else 20_000, 1.0, rounds)
    model = own_times(200, 2_000, 3, 6, spread=4.0)
    against_random_numbers(report, "own times, q = 3, p = 6", model, 100 if smoke else 5_000, 1.6, rounds)
    model = own_times(200, 2_000, 3, 6)
    against_random_numbers(report, "the same near the boundary", model, 100 if smoke else 2_000, 3.0, min(rounds, 3))
    without_effects(report, "own times, q = 2", own_times(100, 600, 2, 4), 200 if smoke else 4_000, rounds)
    without_effects(report, "q = 3", own_times(200, 2_000, 3, 6, spread=4.0), 100 if smoke else 1_000, rounds)
    model = own_times(100, 600, 2, 4)
    with_and_without_search(report, "own times, q = 2", model, 200 if smoke else 5_000, rounds)
    model = own_times(200, 2_000, 3, 6, spread=4.0)
    with_and_without_search(report, "own times, q = 3", model, 100 if smoke else 1_000, rounds)
    if session is not None:
        from _peers import send_frame

        send_frame(session, sleepstudy_frame(), "Subject")
    count = 200 if smoke else 20_000
    limits = {"lme4::refit": 1000.0, "lme-python, fit_prepared": 150.0}
    against_rivals(report, session, "(Days | Subject)", limits, count, rounds)
    against_rivals(report, session, "(1 | Subject)", {"lme-python, fit_prepared": 15.0}, count, rounds)
    bootstrap(report, 100 if smoke else 10_000, rounds)
    power(report, 50 if smoke else 1_000, rounds)
    memory(report, 2_000 if smoke else options.responses)
    if session is not None:
        session.close()
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

"""A prediction of a single row from a fit that was saved and loaded, and the file itself.

100,000 rows of 10,000 subjects with a random slope.  The peer is the pickle of the same result, its bytes and its time.
Nothing is timed before what was loaded predicts what was saved.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path

import _harness

# isort: split
import numpy as np

from _harness import Case


def main() -> int:
    import fastlmm_core as flc

    options = _harness.parser(__doc__).parse_args()
    subjects, rounds = (100, 2) if options.smoke else (10_000, 9)
    report = _harness.Report("latency", _harness.environment())
    rng = np.random.default_rng(0)
    g, t = np.repeat(np.arange(subjects), 10), np.tile(np.arange(10.0), subjects)
    b = rng.standard_normal((subjects, 2))
    y = b[g, 0] + b[g, 1] * t + rng.standard_normal(g.size)
    data = {"g": g, "t": t, "y": y, "arm": np.array(["a", "b", "c"])[g % 3], "site": np.array(list("pqrst"))[g % 5]}
    fit = flc.lmm("y ~ t + (t | g)", data).fit()
    factors = flc.lmm("y ~ arm * t + C(site, Sum) + np.log(t + 1) + (t | g)", data).fit()
    spline = flc.lmm("y ~ arm * bs(t, df=4) + (1 | g)", data).fit()
    row, subject = {"t": [8.5]}, {"t": [8.5], "g": [35]}
    wide = subject | {"arm": ["b"], "site": ["s"]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit.flc"
        fit.save(path)
        size, pickled = path.stat().st_size, pickle.dumps(fit)
        loaded = flc.load(path)
        for given, effects in ((row, "population"), (subject, "all")):
            ours, saved = loaded.predict(given, effects=effects), fit.predict(given, effects=effects)
            if not np.allclose(ours, saved, rtol=1e-9):
                report.fail(f"what was loaded predicts {ours} and not {saved}")
                return report.finish(options)
        cases = [
            Case("population", lambda: loaded.predict(row)),
            Case("subject", lambda: loaded.predict(subject, effects="all")),
            Case("subject, with an interval", lambda: loaded.predict(subject, effects="all", interval="prediction")),
            Case("factors, with an interval", lambda: factors.predict(wide, effects="all", interval="prediction")),
            Case(
                "a spline by a factor, with an interval",
                lambda: spline.predict(wide, effects="all", interval="prediction"),
            ),
            Case("load", lambda: flc.load(path)),
            Case("load the pickle", lambda: pickle.loads(pickled)),
        ]
        timings = _harness.interleave(cases, rounds)
    rows = [(case.name, _harness.format_seconds(timings.median(case.name))) for case in cases]
    report.table(f"{g.size:,} rows, {subjects:,} subjects, a row from a dict", ("", "median"), rows)
    for case in cases[2:5]:
        report.target(f"a row: {case.name}", timings.median(case.name), 1e-3, unit=" s")
    report.target("bytes of the file / of the pickle", size / len(pickled), 0.5)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

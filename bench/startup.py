"""Start-up: what `import fastlmm_core` adds to `import numpy`, and the whole of one fit from the command line.

Every sample is a fresh process; the processes of one round follow each other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _harness

# isort: split
import numpy as np

from _problems import SLEEPSTUDY_FORMULA, SLEEPSTUDY_REML, sleepstudy_frame

UNWANTED = ("pandas", "formulaic", "scipy.stats", "scipy.optimize", "matplotlib", "polars", "pyarrow", "narwhals")
STATEMENTS = (
    "import numpy",
    "import fastlmm_core",
    "import scipy.optimize",
    "import pandas",
    "import statsmodels.api",
    "import mixedlm_rs",
    "from mixedlm import lmer",
    "import lme_python",
    "import interlace",
)
TIMED = "import time; s = time.perf_counter(); {statement}; print(time.perf_counter() - s)"


def import_seconds(statement: str, folder: str) -> float:
    """Seconds of the import statement alone, by the child's own clock."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement=statement)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def process_seconds(arguments: list[str], folder: str) -> tuple[float, str]:
    """Wall seconds of a whole process, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> int:
    options = _harness.parser(__doc__).parse_args()
    rounds = 1 if options.smoke else 21
    report = _harness.Report("start-up", _harness.environment())
    fit = ["-m", "fastlmm_core", "fit", "sleepstudy.csv", SLEEPSTUDY_FORMULA]
    with tempfile.TemporaryDirectory() as folder:
        sleepstudy_frame().to_csv(Path(folder) / "sleepstudy.csv", index=False)
        check = f"import sys, fastlmm_core; print([m for m in {UNWANTED!r} if m in sys.modules])"
        loaded = process_seconds(["-c", check], folder)[1].strip()
        if loaded != "[]":
            report.fail(f"import fastlmm_core also loads {loaded}")
        try:
            printed = process_seconds(fit, folder)[1]
        except subprocess.CalledProcessError as error:
            report.fail(f"the command line fails: {error.stderr.strip()}")
            return report.finish(options)
        if f"{SLEEPSTUDY_REML:.2f}"[:-1] not in printed.replace(",", ""):
            report.fail("the command line does not print the REML criterion of sleepstudy, so it is not timed")
            return report.finish(options)

        present = []
        for statement in STATEMENTS:
            try:
                import_seconds(statement, folder)
            except subprocess.CalledProcessError:
                continue
            present.append(statement)
        imports = np.empty((rounds, len(present)))
        processes = np.empty((rounds, 2))
        for r in range(rounds):
            imports[r] = [import_seconds(statement, folder) for statement in present]
            processes[r] = [process_seconds(["-c", "pass"], folder)[0], process_seconds(fit, folder)[0]]

    medians = np.median(imports, axis=0)
    ratios = np.median(imports / imports[:, :1], axis=0)
    rows = [(statement, _harness.format_seconds(medians[i]), f"{ratios[i]:.3g}") for i, statement in enumerate(present)]
    rows += [(statement, "-", "not installed") for statement in STATEMENTS if statement not in present]
    report.table("Import statement alone, in a fresh process", ("", "median", "x import numpy"), rows)
    report.target("import fastlmm_core / import numpy", ratios[present.index("import fastlmm_core")], 1.3)

    bare, whole = np.median(processes, axis=0)
    report.table(
        "Whole process",
        ("", "median"),
        [
            ("python -c pass", _harness.format_seconds(bare)),
            ("python -m fastlmm_core fit sleepstudy.csv", _harness.format_seconds(whole)),
        ],
    )
    report.target("fit from the command line, whole process", whole, 0.7, unit=" s")
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

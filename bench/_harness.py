"""What every benchmark here shares: one thread, interleaved timing, agreement before times, tables, memory.

Import this module before numpy, so that the thread counts are fixed before BLAS is loaded.

- A `Case` is something that can be timed. Python callables and R expressions are timed alike: a *sample* is the mean
  time of `number` calls, where `number` is chosen so that a sample outlasts the clock's resolution.
- `interleave` takes one sample of every case in turn, round after round, so that a slow spell of the machine falls on
  all of them; ratios are medians of the ratios within a round.
- `Report` prints a time only after the answer behind it was compared with the reference answer.
"""

from __future__ import annotations

from _threads import THREADS

# isort: split
import argparse
import contextlib
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DISTRIBUTIONS = (
    "fastlmm-core",
    "numpy",
    "scipy",
    "formulaic",
    "gpboost",
    "pandas",
    "polars",
    "statsmodels",
    "mixedlm-rs",
    "mixedlm",
    "lme_python",
    "interlace-lme",
)


# ---------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """One fit in lme4's convention: the REML criterion and the fixed effects in the order of the reference's."""

    criterion: float
    beta: np.ndarray
    bse: np.ndarray | None = None
    converged: bool = True


def answer_of(result: Any) -> Answer:
    """The answer of a fastlmm_core result."""
    return Answer(
        float(result.criterion),
        np.asarray(result.params, dtype=float),
        np.asarray(result.bse, dtype=float),
        bool(result.converged),
    )


def criterion_tolerance(criterion: float) -> float:
    """Within this, two criteria describe the same optimum: far below statistical noise, above optimisers' slack."""
    return 1e-3 + 1e-9 * abs(criterion)


def disagreement(answer: Answer, reference: Answer) -> str | None:
    """Why `answer` is not the reference answer, or None when it is."""
    if not answer.converged:
        return "did not converge"
    if answer.beta.shape != reference.beta.shape:
        return f"{answer.beta.size} fixed effects instead of {reference.beta.size}"
    excess = answer.criterion - reference.criterion
    if not abs(excess) <= criterion_tolerance(reference.criterion):
        return f"criterion differs by {excess:+.3g}"
    assert reference.bse is not None
    worst = float(np.max(np.abs(answer.beta - reference.beta) / reference.bse))
    if not worst <= 1e-3:
        return f"fixed effects differ by {worst:.2g} standard errors"
    return None


# ---------------------------------------------------------------------------------------------------------- timing


MOST_CALLS = 10_000
"""Calls in a sample."""


class Case:
    """A named piece of work in this process; `answer` turns what it returns into an Answer (None: no comparison)."""

    def __init__(self, name: str, run: Callable[[], Any], answer: Callable[[Any], Answer] | None = None) -> None:
        self.name = name
        self.run = run
        self._answer = answer

    def answer(self) -> Answer | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = self.run()
            return None if self._answer is None else self._answer(value)

    def sample(self, number: int) -> float:
        """Mean seconds of `number` calls, without garbage collection in between."""
        run = self.run
        with warnings.catch_warnings(), paused_gc():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            for _ in range(number):
                run()
            return (time.perf_counter() - start) / number


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Timings:
    """Samples in seconds per call, one row per round, one column per case."""

    names: tuple[str, ...]
    samples: np.ndarray

    def column(self, name: str) -> np.ndarray:
        return self.samples[:, self.names.index(name)]

    def median(self, name: str) -> float:
        return float(np.median(self.column(name)))

    def ratio(self, name: str, to: str) -> float:
        """Median over rounds of time(name) / time(to)."""
        return float(np.median(self.column(name) / self.column(to)))

    def difference(self, name: str, minus: str) -> float:
        """Median over rounds of time(name) - time(minus)."""
        return float(np.median(self.column(name) - self.column(minus)))


def calls_lasting(case: Any, seconds: float) -> int:
    """Calls of a case that together last so long: as many as a sample needs, counted by samples, not by single calls.

    What comes first after a garbage collection finds nothing in the caches and takes up to ten times as long: of fast
    cases one call tells little, and samples of a few dozen would measure the caches.
    """
    number = 1
    while True:
        taken = case.sample(number) * number
        if taken >= 0.5 * seconds or number >= MOST_CALLS:
            return max(1, min(MOST_CALLS, round(number * seconds / max(taken, 1e-9))))
        number = min(MOST_CALLS, 4 * number)


def interleave(cases: Sequence[Any], rounds: int, min_sample: float = 0.01) -> Timings:
    """Time all cases in turn, `rounds` times over; fast ones are repeated until a sample lasts `min_sample` seconds.

    With --smoke each case runs once.
    """
    if "--smoke" in sys.argv:
        return Timings(tuple(case.name for case in cases), np.array([[case.sample(1) for case in cases]]))
    numbers = []
    for case in cases:
        if case.sample(1) >= 10 * min_sample:
            numbers.append(1)
        else:  # the first call may have loaded something
            numbers.append(calls_lasting(case, min_sample))
    samples = np.empty((rounds, len(cases)))
    for r in range(rounds):
        for c in np.roll(np.arange(len(cases)), -r):
            samples[r, c] = cases[c].sample(numbers[c])
    return Timings(tuple(case.name for case in cases), samples)


# ---------------------------------------------------------------------------------------------------------- R


_R_LOOP = """
con <- file("stdin", "r")
repeat {
  line <- readLines(con, 1)
  if (!length(line)) break
  out <- tryCatch(suppressWarnings(suppressMessages(eval(parse(text = line), globalenv()))),
                  error = function(e) paste("error:", conditionMessage(e)))
  cat("@@", paste(format(out, digits = 17), collapse = " "), "\\n", sep = "")
  flush(stdout())
}
"""


class RSession:
    """One R process for the whole run, asked line by line, so that R's own clock times it and start-up never counts."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        script = Path(self._folder.name) / "loop.R"
        script.write_text(_R_LOOP)
        self._process = subprocess.Popen(
            ["Rscript", "--vanilla", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.eval(
            "sample_time <- function(f, number) { gc(FALSE); s <- Sys.time(); for (i in seq_len(number)) f(); "
            'as.numeric(Sys.time() - s, units = "secs") / number }'
        )

    def eval(self, code: str) -> str:
        """Evaluate one line in the global environment and return its formatted value."""
        assert "\n" not in code and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(code + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("@@"):
                value = line[2:].strip()
                if value.startswith("error:"):
                    raise RuntimeError(f"R: {value} in {code}")
                return value
        raise RuntimeError(f"R ended while evaluating {code}")

    def numbers(self, code: str) -> np.ndarray:
        return np.array([float(word) for word in self.eval(code).split()])

    def assign(self, name: str, values: np.ndarray) -> None:
        """Copy a numeric vector into R through a binary file."""
        path = Path(self._folder.name) / f"{name}.bin"
        integer = np.issubdtype(values.dtype, np.integer)
        values.astype("<i4" if integer else "<f8").tofile(path)
        kind = "integer(), n, size = 4" if integer else "double(), n, size = 8"
        self.eval(f'{{n <- {values.size}; {name} <- readBin("{path.as_posix()}", {kind}, endian = "little"); NULL}}')
        path.unlink()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._folder.cleanup()


class RCase:
    """An lme4 fit in an RSession: `function_code` is an R function of no argument that returns a merMod."""

    _count = itertools.count()

    def __init__(self, name: str, session: RSession, function_code: str) -> None:
        self.name = name
        self.session = session
        self._function = f"fit_{next(self._count)}"
        session.eval(f"{{{self._function} <- {function_code}; NULL}}")

    def answer(self) -> Answer:
        fitted = self.session.numbers(f"{{m <- {self._function}(); c(REMLcrit(m), fixef(m))}}")
        return Answer(float(fitted[0]), fitted[1:])

    def sample(self, number: int) -> float:
        return float(self.session.numbers(f"sample_time({self._function}, {number})")[0])


def open_r(package: str) -> RSession | None:
    """A session with a package attached, or None where R or the package is missing."""
    if shutil.which("Rscript") is None:
        return None
    session = RSession()
    if session.eval(f'suppressWarnings(require("{package}", quietly = TRUE))') != "TRUE":
        session.close()
        return None
    return session


def open_lme4() -> RSession | None:
    """A session with lme4 attached, or None where R or lme4 is missing."""
    return open_r("lme4")


# ---------------------------------------------------------------------------------------------------------- memory


def _status_bytes(key: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def peak_extra_bytes(run: Callable[[], Any]) -> int:
    """Peak resident memory during `run()` above what was resident before it.

    On Linux the high-water mark is reset first, so that the building of the inputs does not hide anything. Elsewhere
    the mark cannot be reset, and the result is a lower bound.
    """
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    if before is None:
        unit = 1 if sys.platform == "darwin" else 1024
        mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mark) * unit
    run()
    after = _status_bytes("VmHWM")
    assert after is not None
    return max(0, after - before)


def measure_in_child(script: str, *arguments: str) -> dict[str, Any]:
    """Run `script` again in a fresh process and read the JSON object that it prints."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(script).name} {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------------- reports


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment(session: RSession | None = None) -> dict[str, str]:
    record = {
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "threads": THREADS,
    }
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            record[name] = importlib.metadata.version(name)
    if session is not None:
        record["R"] = session.eval("as.character(getRversion())")
        record["lme4"] = session.eval('as.character(packageVersion("lme4"))')
    return record


def format_seconds(seconds: float) -> str:
    magnitude = abs(seconds)
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if magnitude >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


@dataclass
class Report:
    """Tables, targets and refusals of one script."""

    title: str
    environment: dict[str, str]
    tables: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(f"== {self.title}")
        print("   " + ", ".join(f"{key} {value}" for key, value in self.environment.items()))

    def table(self, caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table and keep it for the JSON record."""
        self.tables.append({"caption": caption, "header": list(header), "rows": [list(row) for row in rows]})
        widths = [max(len(str(row[c])) for row in [header, *rows]) for c in range(len(header))]
        print(f"\n{caption}")
        for row in [header, ["-" * width for width in widths], *rows]:
            cells = [str(cell) for cell in row]
            padded = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            print("  " + "  ".join([cells[0].ljust(widths[0]), *padded]))

    def target(self, sentence: str, value: float, limit: float, at_least: bool = False, unit: str = "") -> None:
        met = bool(value >= limit if at_least else value <= limit)
        self.targets.append({"target": sentence, "value": value, "limit": limit, "met": met})
        sign = "≥" if at_least else "≤"
        print(f"  [{'met' if met else 'MISSED'}] {sentence}: {value:.4g}{unit} ({sign} {limit:.4g}{unit})")

    def fail(self, why: str) -> None:
        self.failures.append(why)
        print(f"  FAILED: {why}")

    def compare(
        self,
        caption: str,
        reference: Any,
        peers: Sequence[Any],
        missing: Sequence[str] = (),
        rounds: int = 11,
        min_sample: float = 0.01,
    ) -> Timings | None:
        """Check every answer against the reference's, time those that agree (interleaved) and print the table.

        A peer without an answer to compare (such as least squares) is timed as a yardstick.
        """
        anchor = reference.answer()
        if anchor is None or not anchor.converged:
            self.fail(f"{caption}: {reference.name} has no certified answer, so nothing is timed")
            return None
        agreeing, refused = [], []
        for peer in peers:
            try:
                answer = peer.answer()
            except Exception as error:
                refused.append((peer.name, f"refused: {type(error).__name__}: {str(error)[:60]}"))
                continue
            why = None if answer is None else disagreement(answer, anchor)
            if why is None:
                agreeing.append(peer)
                continue
            refused.append((peer.name, f"refused: {why}"))
            if answer.converged and answer.criterion < anchor.criterion - criterion_tolerance(anchor.criterion):
                self.fail(f"{caption}: {peer.name} reports a lower criterion than {reference.name}")
        timings = interleave([reference, *agreeing], rounds, min_sample)
        rows = []
        for case in [reference, *agreeing]:
            low, high = np.percentile(timings.column(case.name), [25, 75])
            rows.append(
                (
                    case.name,
                    format_seconds(timings.median(case.name)),
                    f"{format_seconds(low)} .. {format_seconds(high)}",
                    f"{timings.ratio(case.name, reference.name):.3g}",
                )
            )
        rows += [(name, "-", why, "-") for name, why in refused]
        rows += [(name, "-", "not installed", "-") for name in missing]
        self.table(caption, ("", "median", "quartiles", f"x {reference.name}"), rows)
        return timings

    def finish(self, options: argparse.Namespace) -> int:
        """Write the JSON record; the exit status is non-zero after a failure (and, with --check, a missed target)."""
        if options.json:
            record = {
                "title": self.title,
                "smoke": options.smoke,
                "environment": self.environment,
                "tables": self.tables,
                "targets": self.targets,
                "failures": self.failures,
            }
            Path(options.json).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        missed = options.check and any(not target["met"] for target in self.targets)
        return 1 if self.failures or missed else 0


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    options = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    options.add_argument("--smoke", action="store_true", help="tiny sizes: does it run? (the times mean nothing)")
    options.add_argument("--json", metavar="FILE", help="also write the tables as JSON")
    options.add_argument("--check", action="store_true", help="exit with status 1 when a target is missed")
    return options

"""A fit from a Parquet file that is never held, against what pyarrow needs to read the same columns; peak memory.

Ten million rows of five columns, a million groups, random slope: once with numbers that no compression makes smaller,
and once with rounded numbers and labels that are text. The answer is checked against the fit of the same rows in
memory, where it has to be the same to the last bit. Pyarrow reads as it does unless told otherwise, which holds a whole
file at a time, and piece by piece, which takes it a fraction of that: a scan is measured by the latter.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import _harness

# isort: split
import numpy as np

FORMULA = "y ~ x + z + v + (x | g)"
COLUMNS = ["y", "x", "z", "v", "g"]
PER_GROUP, STEP = 10, 1_000_000
"""Rows of a group, unless told otherwise, and rows that are written at a time."""


def write(path: Path, groups: int, text: bool, per_group: int = PER_GROUP) -> None:
    """Rows of groups, sorted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    step = STEP // per_group
    for start in range(0, groups, step):
        m = min(step, groups - start)
        rng = np.random.default_rng(start)
        g = np.repeat(np.arange(m), per_group)
        x, z, v, e = rng.normal(size=(4, len(g)))
        b = rng.normal(size=(m, 2))
        y = 1.0 + x + 0.5 * z + b[g, 0] + b[g, 1] * x + e
        labels = np.char.add("id", (g + start).astype(str)) if text else g + start
        found = [np.round(values, 2) for values in (y, x, z, v)] if text else [y, x, z, v]
        table = pa.table(dict(zip(COLUMNS, [*found, labels], strict=True)))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def read(path: str, whole: bool = False) -> int:
    """The rows of the file, decoded in batches as a scan does it; `whole`: by pyarrow's own settings."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=whole) as file:
        return sum(batch.num_rows for batch in file.iter_batches(1 << 17, columns=COLUMNS))


def memory_child(path: str) -> None:
    """In a fresh process: print the peak above what is resident after a small fit."""
    import fastlmm_core as flc

    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.parquet"
        write(small, 2000, False)
        flc.lmm(FORMULA, flc.scan(small)).fit()
    converged = []
    extra = _harness.peak_extra_bytes(lambda: converged.append(flc.lmm(FORMULA, flc.scan(path)).fit().converged))
    print(json.dumps({"extra": extra, "converged": bool(converged[0])}))


def case(report: _harness.Report, path: Path, text: bool, options: argparse.Namespace) -> None:
    import pyarrow.parquet as pq

    import fastlmm_core as flc

    groups, n = options.groups, options.groups * options.per_group
    write(path, groups, text, options.per_group)
    what = "text labels, rounded numbers" if text else "whole-number labels"
    from_file, in_memory = flc.lmm(FORMULA, flc.scan(path)).fit(), flc.lmm(FORMULA, pq.read_table(path)).fit()
    if from_file.criterion != in_memory.criterion or not np.array_equal(from_file.beta, in_memory.beta):
        report.fail(f"{what}: the fit of the file is not that of the rows in memory")
        return
    ours = _harness.Case("fastlmm_core, scan and fit", lambda: flc.lmm(FORMULA, flc.scan(path)).fit())
    yardstick = _harness.Case("pyarrow, reading alone", lambda: read(str(path)))
    held = _harness.Case("pyarrow, reading alone, whole files at a time", lambda: read(str(path), True))
    timings = _harness.interleave([ours, yardstick, held], options.rounds)
    rows = [
        (
            name,
            _harness.format_seconds(timings.median(name)),
            f"{timings.median(name) / n * 1e9:.0f} ns",
        )
        for name in (ours.name, yardstick.name, held.name)
    ]
    report.table(f"{n:,} rows, {groups:,} groups, {what}", ("", "median", "per row"), rows)
    report.target(f"scan and fit / pyarrow reading alone, {what}", timings.ratio(ours.name, yardstick.name), 1.5)


def main() -> int:
    parser = _harness.parser(__doc__)
    parser.add_argument("--groups", type=int, default=1_000_000, help="groups")
    parser.add_argument("--per-group", type=int, default=PER_GROUP, help="rows of each group")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_child:
        memory_child(options.memory_child)
        return 0
    if options.smoke:
        options.groups, options.rounds = 2000, 2
    report = _harness.Report("data that are read in pieces", _harness.environment(None))
    with tempfile.TemporaryDirectory() as folder:
        for text in (True, False):
            case(report, Path(folder) / f"{text}.parquet", text, options)
        record = _harness.measure_in_child(__file__, "--memory-child", str(Path(folder) / "False.parquet"))
        if not record["converged"]:
            report.fail("memory: not certified")
        megabytes = record["extra"] / 2**20
        report.table("Peak memory of scan and fit above a small fit", ("", "extra"), [("", f"{megabytes:.0f} MiB")])
        report.target("peak memory, MiB", megabytes, 2000.0)
    return report.finish(options)


if __name__ == "__main__":
    sys.exit(main())

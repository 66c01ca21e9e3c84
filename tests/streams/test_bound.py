"""A bound on memory: smaller pieces of files, and a refusal of more groups than have room."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.streams.source import BATCH
from streamed import FORMULA, cut, same_bits, simulated


def test_files_are_read_in_smaller_pieces(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    n = BATCH + 5000
    data = simulated(n)
    table = arrow.Table.from_pandas(data, preserve_index=False)
    parquet.write_table(table, tmp_path / "rows.parquet")
    dataset = pytest.importorskip("pyarrow.dataset").dataset(tmp_path / "rows.parquet")
    one = flc.lmm(FORMULA, flc.scan(tmp_path / "rows.parquet")).fit()
    for source in (tmp_path / "rows.parquet", dataset):
        lengths = [[t.n_rows for t in flc.scan(source, memory=m).tables(["y", "x", "z", "g"])] for m in (None, 20.0)]
        assert max(lengths[0]) == BATCH and 2048 <= max(lengths[1]) < BATCH // 4
        assert sum(lengths[1]) == n
        same_bits(flc.lmm(FORMULA, flc.scan(source, memory=20.0)).fit(), one)


@pytest.mark.parametrize("text", [False, True])
def test_more_groups_than_have_room(text):
    n = 60_000
    data = {"y": np.random.default_rng(1).normal(size=n), "g": np.arange(n) // 2}
    if text:
        data["g"] = data["g"].astype(str)
    parts = [{name: v[i : i + 5000] for name, v in data.items()} for i in range(0, n, 5000)]
    words = r"memory=1: a fit of [\d,]+ groups of 'g' takes [\d.]+ MB, and not all rows have been read; raise memory"
    with pytest.raises(flc.LMMError, match=words):
        flc.lmm("y ~ 1 + (1 | g)", flc.scan(parts, memory=1))
    plan = flc.plan("y ~ 1 + (1 | g)", data)
    with pytest.raises(flc.LMMError, match=words):
        plan.reduce(flc.scan(parts, memory=1), key=0)
    if not text:  # sums in twice the precision need room of their own
        flc.lmm("y ~ 1 + (1 | g)", flc.scan(parts, memory=6))
        with pytest.raises(flc.LMMError, match=r"memory=6: .* groups"):
            flc.lmm("y ~ 1 + (1 | g)", flc.scan(iter(parts), memory=6))
    same_bits(
        flc.lmm("y ~ 1 + (1 | g)", flc.scan(parts, memory=100)).fit(), flc.lmm("y ~ 1 + (1 | g)", flc.scan(parts)).fit()
    )


def test_combinations_of_levels_and_scans_that_are_bounded_later():
    data = simulated(20_000).assign(room=lambda d: np.arange(len(d)) % 997)
    source = flc.scan(cut(data, 3000))
    with pytest.raises(flc.LMMError, match=r"memory=1: a fit of [\d,]+ combinations of levels of 'g', 'room'"):
        flc.lmm("y ~ x + (1 | g) + (1 | room)", flc.scan(source, memory=1))
    assert source.memory is None and source.passes == 0
    with pytest.raises(flc.LMMError, match="memory=0 must be a positive number of megabytes"):
        flc.scan(data, memory=0)

"""When a progress bar appears."""

from __future__ import annotations

import sys
import types

import pytest

import fastlmm_core as flc
from fastlmm_core.support.progress import progress_bar


@pytest.fixture
def bars(monkeypatch):
    """What was asked of tqdm."""
    asked = []
    module = types.ModuleType("tqdm.auto")
    module.tqdm = lambda **options: asked.append(options) or types.SimpleNamespace(update=int, close=lambda: None)
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    return asked


def test_scripts_have_none_unless_they_ask(bars, monkeypatch):
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert progress_bar(None, 10) is None
    assert progress_bar(False, 10) is None
    assert bars == []
    assert progress_bar(True, 10) is not None
    assert bars == [{"total": 10, "unit": "fit", "delay": 0.0}]


@pytest.mark.parametrize("where", ["prompt", "notebook"])
def test_interactive_sessions_have_one_for_long_work(bars, monkeypatch, where):
    if where == "prompt":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert progress_bar(False, 10) is None
    assert progress_bar(None, 7, "parameter") is not None
    assert bars[0]["total"] == 7
    assert bars[0]["unit"] == "parameter"
    assert bars[0]["delay"] > 0.0


def test_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert progress_bar(None, 10) is None
    with pytest.raises(flc.LMMError, match=r"pip install 'fastlmm-core\[progress\]'"):
        progress_bar(True, 10)


def test_every_long_task_takes_the_argument(bars):
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "dict")).fit()
    result.bootstrap(20, seed=1, progress=True)
    result.simulate_fit(20, 1, progress=True)
    result.model.fit_many(result.simulate(20, 1), progress=True)
    result.profile("sigma", progress=True)
    flc.power(result, "Days", n_sim=20, seed=1, progress=True)
    assert [options["total"] for options in bars] == [20, 20, 20, 1, 20]

"""The words of other packages: the table itself, what it says of arguments, and formulas that look like mistakes."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.support import words
from fastlmm_core.support.arguments import checked

DOCS = Path(__file__).parents[2] / "docs"


@cache
def data():
    rng = np.random.default_rng(0)
    n = 120
    return pd.DataFrame(
        {
            "y": rng.normal(size=n), "x": rng.normal(size=n), "z": rng.normal(size=n), "k": np.arange(n) % 5,
            "h": np.array(["a", "b", "c"])[np.arange(n) % 3], "g": np.repeat(np.arange(12), 10),
            "my x": rng.normal(size=n),
        }
    )  # fmt: skip


@cache
def model():
    return flc.lmm("y ~ x + h + (1 | g)", data())


@cache
def result():
    return model().fit()


# ---- attributes ----------------------------------------------------------------------------------------------------


def test_everything_that_a_result_has_is_missed_on_a_model():
    names = {name for name in {*dir(result()), *vars(result())} if not name.startswith("_") and name != "model"}
    for name in names - {*dir(model()), *vars(model())}:
        with pytest.raises(AttributeError, match="fit the model first"):
            getattr(model(), name)


@pytest.mark.parametrize("owner", [result, model])
@pytest.mark.parametrize("name", ["nothing_like_it", "_private", "__array_interface__"])
def test_other_names_have_pythons_message(owner, name):
    one = owner()
    with pytest.raises(AttributeError, match=f"^'{type(one).__name__}' object has no attribute '{name}'$") as caught:
        getattr(one, name)
    assert caught.value.name == name and caught.value.obj is one


def test_an_error_inside_a_property_is_told():
    class Broken(flc.LMMResult):
        @property
        def broken(self):
            return self.model.this_is_not_there

    broken = object.__new__(Broken)
    broken.__dict__.update(vars(result()))
    with pytest.raises(AttributeError, match="this_is_not_there"):
        broken.broken  # noqa: B018


# ---- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("y ~ x**2 + (1 | g)", "I(x**2)"),
        ("y ~ x^2 + (1 | g)", "I(x**2)"),
        ("y ~ z + x ^ 3 + (1 | g)", "I(x**3)"),
        ("y ~ z * `my x`**2 + (1 | g)", "I(`my x`**2)"),
        ("y ~ np.exp(x)**2 + (1 | g)", "I(np.exp(x)**2)"),
        ("y ~ x + (x**2 | g)", "I(x**2)"),
    ],
)
def test_powers_that_are_none(formula, said):
    with pytest.warns(UserWarning, match=re.escape(f"write {said} for the power")) as caught:
        flc.lmm(formula, data())
    assert {Path(one.filename).name for one in caught} == {"test_words.py"}


@pytest.mark.parametrize(
    "formula", ["y ~ (x + z)**2 + (1 | g)", "y ~ (x + h)^2 + (1 | g)", "y ~ I(x**2) + (1 | g)", "y ~ x**1 + (1|g)"]
)
def test_powers_that_are_meant(formula):
    flc.lmm(formula, data())  # warnings are errors


def test_exclusive_or_of_truths_is_left_alone():
    truths = data().assign(a=data().x > 0, b=data().z > 0)
    made = flc.lmm("y ~ I(a ^ b) + (1 | g)", truths)
    np.testing.assert_array_equal(made.exog[:, 1], (truths.a ^ truths.b).astype(float))


def test_natural_splines_are_those_of_r():
    """Cubic inside, straight outside of the knots: what `ns` spans, by truncated powers."""
    x = data().x.to_numpy()
    knots = np.quantile(x, [0.0, 1 / 3, 2 / 3, 1.0])
    d = [(np.maximum(x - k, 0.0) ** 3 - np.maximum(x - knots[-1], 0.0) ** 3) / (knots[-1] - k) for k in knots[:-1]]
    basis = np.column_stack([np.ones_like(x), x, *(one - d[-1] for one in d[:-1])])
    made = flc.lmm("y ~ cr(x, df=4) + (1 | g)", data()).exog
    assert np.linalg.matrix_rank(made) == 4
    assert np.abs(basis - made @ np.linalg.lstsq(made, basis, rcond=None)[0]).max() < 1e-9 * np.abs(basis).max()


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [(owner, name, said) for owner, known in words.ARGUMENTS.items() for name, said in known.items()],
)
def test_arguments_that_have_other_names_here(owner, name, said):
    """Whatever the words say, the error of a checked function says it, and names the function that was called."""

    def called(x=None):
        return x

    called.__name__ = owner
    with pytest.raises(TypeError, match=re.escape(f"{owner}() has no argument {name!r}: {said}")):
        checked(called)(**{name: 1})


def test_swapped_arguments_of_a_checked_function():
    def called(text: str, table: dict, level: float = 0.5): ...

    with pytest.raises(flc.LMMError, match=r"^called\(\): text and table are swapped; write called\(text, table\)$"):
        checked(called)({}, "text")
    with pytest.raises(flc.LMMError, match="text must be a string"):
        checked(called)({}, {})


# ---- the table itself ----------------------------------------------------------------------------------------------


def test_the_words_of_this_library_exist():
    places = {"result": result(), "model": model(), "flc": flc}
    assert len(words.LME4) > 40 and len(words.READING) > 15
    for word in (*words.LME4, *words.WRITING, *words.READING):
        for owner, name in re.findall(r"\b(result|model|flc)\.(\w+)", word.here.replace("result.model", "model")):
            assert hasattr(places[owner], name), (word.theirs, owner, name)
        for name in word.names:
            assert not hasattr(result(), name) and name not in flc.__all__, name


def test_arguments_exist_and_the_foreign_ones_do_not():
    import inspect

    owners = {
        "lmm": flc.lmm, "LinearMixedModel": flc.LinearMixedModel, "fit": flc.LinearMixedModel.fit,
        "fit_many": flc.LinearMixedModel.fit_many, "compare": flc.compare, "power": flc.power,
        "random_effect_test": flc.random_effect_test,
    }  # fmt: skip
    for owner, known in words.ARGUMENTS.items():
        found = inspect.signature(owners.get(owner) or getattr(flc.LMMResult, owner)).parameters
        assert not set(found) & set(known), owner
        for said in known.values():
            for name in re.findall(r"(?<![\w(])(?:called |one of the )(\w+)", said):
                assert name in found or name in ("options",), (owner, said)


@pytest.mark.skipif(not DOCS.exists(), reason="the tests stand without the rest of the tree")
@pytest.mark.parametrize("page", ["from-lme4.md", "from-statsmodels.md"])
def test_the_pages_hold_the_table(page, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_support"))
    monkeypatch.delitem(sys.modules, "words", raising=False)
    import words as script

    text = (DOCS / page).read_text(encoding="utf-8")
    assert "<!-- words: " in text
    assert script.filled(text) == text, "run python docs/_support/words.py"

"""Arrays that the caller changes after a model was made do not change it: small ones are copied, large ones watched.

The oracle is the same model made of arrays that nobody touches.
"""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.estimation import model as estimation_model
from fastlmm_core.support.seals import SMALL, constant, seal

KINDS = ["one factor", "two terms", "nested", "crossed"]


def arrays(kind, n, rng=None):
    rng = np.random.default_rng(3) if rng is None else rng
    g = np.arange(n) % 23
    h = np.arange(n) // 23 % 7 if kind == "crossed" else g // 4
    t = rng.standard_normal(n)
    X = np.column_stack([np.ones(n), t, rng.standard_normal(n)])
    y = X @ [1.0, 2.0, 0.5] + rng.standard_normal(23)[g] + rng.standard_normal(23)[h] + rng.standard_normal(n)
    given = {
        "y": y, "X": X, "weights": rng.uniform(0.5, 2.0, n), "offset": rng.standard_normal(n), "Z": X[:, :2].copy(),
        "g": g, "h": h, "column": t[:, None].copy(),
    }  # fmt: skip
    return given


def model(kind, d):
    rest = {"weights": d["weights"], "offset": d["offset"]}
    if kind == "one factor":
        return flc.LinearMixedModel(d["y"], d["X"], d["Z"], d["g"], **rest)
    terms = {
        "two terms": [flc.RandomTerm(None, d["g"], "g"), flc.RandomTerm(d["column"], d["g"], "g")],
        "nested": [flc.RandomTerm(None, d["g"], "g"), flc.RandomTerm(None, d["h"], "h")],
        "crossed": [flc.RandomTerm(d["Z"], d["g"], "g"), flc.RandomTerm(None, d["h"], "h")],
    }[kind]
    return flc.LinearMixedModel(d["y"], d["X"], terms=terms, **rest)


def spoil(values, rng):
    """Change every number of an array in place."""
    values[...] = rng.permutation(values) if values.dtype.kind == "i" else rng.standard_normal(values.shape) - 5.0


def same(found, expected):
    assert found.criterion == expected.criterion
    np.testing.assert_array_equal(found.resid, expected.resid)
    np.testing.assert_array_equal(found.fittedvalues, expected.fittedvalues)
    np.testing.assert_array_equal(found.residuals("studentized"), expected.residuals("studentized"))
    for a, b in zip(found.blups, expected.blups, strict=True):
        np.testing.assert_array_equal(a, b)
    y = np.sin(np.arange(found.nobs))
    assert found.model.refit(y).criterion == expected.model.refit(y).criterion
    np.testing.assert_array_equal(found.model.fit_many(y).params, expected.model.fit_many(y).params)
    assert found.model.nobs == expected.model.nobs and found.n_groups == expected.n_groups


@pytest.mark.parametrize("kind", KINDS)
def test_small_arrays_are_the_models_own(kind, rng):
    expected = model(kind, arrays(kind, 230)).fit()
    mine = arrays(kind, 230)
    made = model(kind, mine)
    for values in mine.values():
        spoil(values, rng)
    same(made.fit(), expected)


def test_a_small_response_is_the_models_own(rng):
    made = model("nested", arrays("nested", 230))
    y = rng.standard_normal(230)
    expected = made.refit(y.copy())
    other, again = made.refit(y), flc.LinearMixedModel(y, design=made.design)
    y *= 2.0
    same(other, expected)
    same(again.fit(), expected)


LARGE = 12_000
USED = {
    "one factor": ["y", "X", "Z", "g", "weights", "offset"],
    "two terms": ["y", "X", "g", "column", "weights", "offset"],
    "nested": ["y", "X", "g", "h", "weights", "offset"],
    "crossed": ["y", "X", "Z", "g", "h", "weights", "offset"],
}
CASES = [(kind, name) for kind in KINDS for name in USED[kind]]


COPIED = {("two terms", "column"), *((kind, name) for kind in ("nested", "crossed") for name in "gh")}
"""What is copied in any case: columns of several terms of a factor, and the codes of several factors."""


def changed(ask, words="been changed since the model was made, and its rows are needed again"):
    with pytest.raises(flc.LMMError, match=words):
        ask()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_changes_of_large_arrays_are_noticed(kind, name, rng):
    mine = arrays(kind, LARGE)
    expected = model(kind, arrays(kind, LARGE)).fit()
    made = model(kind, mine)
    fit = made.fit()
    spoil(mine[name], rng)
    for again in (fit, made.fit()):  # what has been read already stays
        assert again.criterion == expected.criterion
        np.testing.assert_array_equal(again.params, expected.params)
    if (kind, name) in COPIED:
        same(fit, expected)
        return
    changed(lambda: fit.resid)
    changed(lambda: made.fit_many(np.zeros((1, LARGE))))
    changed(lambda: made.refit(np.zeros(LARGE)))
    changed(lambda: pickle.dumps(fit))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [0, 5000, LARGE - 1])
def test_one_changed_number_is_noticed(kind, row):
    expected = model(kind, arrays(kind, LARGE)).fit()
    for name in USED[kind]:
        mine = arrays(kind, LARGE)
        made = model(kind, mine)
        if mine[name].dtype.kind == "i":
            mine[name][row] = (mine[name][row] + 1) % 5
        else:
            mine[name].reshape(LARGE, -1)[row, -1] *= 1.001
        if (kind, name) in COPIED:
            same(made.fit(), expected)
        else:
            changed(lambda: made.exog, r"been changed since .*\.copy\(\)")  # noqa: B023


@pytest.mark.parametrize("kind", KINDS)
def test_large_arrays_that_stay_are_read_again_once(kind, rng):
    mine = arrays(kind, LARGE)
    made = model(kind, mine)
    fit = made.fit()
    for name in USED[kind]:
        assert np.shares_memory(mine[name], getattr(made._design, {"X": "exog"}.get(name, "exog"))) == (name == "X")
    first = fit.resid.copy()
    assert not np.shares_memory(mine["X"], made.exog) and not np.shares_memory(mine["y"], made.endog)
    for values in mine.values():  # the copies are the model's own
        spoil(values, rng)
    np.testing.assert_array_equal(fit.resid, first)
    same(fit, model(kind, arrays(kind, LARGE)).fit())


@pytest.mark.parametrize("name", ["ar1", "sp_exp"])
def test_structured_residuals(name, rng):
    """Subjects and times are codes and coordinates of the model's own, X is watched."""

    def made(d):
        return flc.LinearMixedModel(d["y"], d["X"], residual=flc.Residual(name, d["subject"], d["time"]))

    def fresh():
        time = np.tile(np.arange(4), LARGE // 4)
        d = {name: values for name, values in arrays("one factor", LARGE).items() if name in "yX"}
        return d | {"subject": np.arange(LARGE) // 4, "time": time if name == "ar1" else time + 0.5}

    expected, mine = made(fresh()).fit(), fresh()
    model = made(mine)
    spoil(mine["subject"], rng)
    mine["time"][...] = mine["time"][::-1].copy()
    fit = model.fit()
    assert fit.criterion == expected.criterion
    np.testing.assert_array_equal(fit.resid, expected.resid)
    again = made(mine := fresh())
    mine["X"][3, 1] += 1.0
    changed(lambda: again.exog)


def test_designs_without_a_response():
    mine = arrays("one factor", LARGE)
    empty = flc.LinearMixedModel(None, mine["X"], mine["Z"], mine["g"])
    assert empty._seals is not None
    y = mine["y"].copy()
    expected = flc.LinearMixedModel(y, mine["X"].copy(), mine["Z"].copy(), mine["g"].copy()).fit()
    assert empty.refit(y).criterion == expected.criterion
    other = flc.LinearMixedModel(None, mine["X"], mine["Z"], mine["g"])
    mine["Z"][5000, 1] += 1.0
    changed(lambda: other.refit(y))
    later = empty.refit(y)
    y[0] += 1.0
    changed(lambda: later.resid, r"^y has been changed")


def test_a_fit_reads_no_rows_again():
    made = model("crossed", arrays("crossed", LARGE))
    result = made.fit()
    for name in ("params", "bse", "tvalues", "sigma2", "G", "criterion", "aic", "bic", "theta", "rows_used", "message"):
        assert getattr(result, name) is not None and made._seals is not None


def test_what_nobody_can_change_is_not_copied(tmp_path):
    d = arrays("one factor", LARGE)
    for values in d.values():
        values.flags.writeable = False
    made = model("one factor", d)
    assert made._seals is None and made.exog is d["X"]
    np.save(tmp_path / "X.npy", d["X"])
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert constant(mapped) and constant(mapped[:, 1])
    writeable = np.load(tmp_path / "X.npy", mmap_mode="r+")
    view = writeable[:]
    view.flags.writeable = False
    assert not constant(writeable) and not constant(view)


def test_a_frame_that_is_changed_in_place(rng):
    """numpy's view of a column cannot be written to; the frame can."""
    d = arrays("one factor", LARGE)
    frame = pd.DataFrame({"y": d["y"], "one": 1.0, "t": d["X"][:, 1], "g": d["g"]})
    made = flc.LinearMixedModel(frame.y, frame[["one", "t"]], None, frame.g)
    resid = flc.LinearMixedModel(d["y"], d["X"][:, :2], None, d["g"]).fit().resid
    fit = made.fit()
    frame.loc[7, "y"] = 100.0
    try:  # whether the frame changed the array that was given depends on pandas
        np.testing.assert_allclose(fit.resid, resid, rtol=1e-8, atol=1e-8)
    except flc.LMMError as error:
        assert "y has been changed" in str(error) or "one of y" in str(error)


@pytest.mark.parametrize("n", [12_000, 70_000])
@pytest.mark.parametrize("order", ["C", "F", "columns", "rows", "float32"])
def test_seals(n, order, rng):
    values = rng.standard_normal((n, 3))
    if order == "F":
        values = np.asfortranarray(values)
    elif order == "columns":
        values = rng.standard_normal((n, 5))[:, 1:4]
    elif order == "rows":
        values = rng.standard_normal((2 * n, 3))[::2]
    elif order == "float32":
        values = values.astype(np.float32)

    def broken():
        return not all(map(np.array_equal, seal(values), before))

    before = seal(values)
    assert values.nbytes > SMALL and sum(part.nbytes for part in before) <= 2**19 and not broken()
    for change in (
        lambda: values.__imul__(1.0 + 1e-6), lambda: rng.shuffle(values), lambda: values.sort(axis=0),
        lambda: values.__setitem__(slice(None), values[::-1].copy()),
        lambda: values.__setitem__(slice(None), np.roll(values, 1, axis=0)), lambda: values[0].__imul__(2.0),
        lambda: values.__setitem__([0, 1], values[[1, 0]]),
    ):  # fmt: skip
        before = seal(values)
        change()
        assert broken()


def test_rows_of_a_table_are_not_conditioned_again(monkeypatch):
    # they are nobody's but the model's: residuals and other responses need no look at what they have become
    d = arrays("one factor", 20_000)
    data = pd.DataFrame({"y": d["y"], "x": d["X"][:, 1], "g": d["g"]})
    result = flc.lmm("y ~ x + (1 | g)", data).fit()
    conditioned = []
    known = estimation_model.problem_of
    monkeypatch.setattr(estimation_model, "problem_of", lambda *given: conditioned.append(1) or known(*given))
    assert len(result.fittedvalues) == 20_000
    assert len(result.model.endog) == 20_000
    assert not conditioned
    # those of a caller's arrays are
    again = flc.LinearMixedModel(d["y"], d["X"][:, :2], groups=d["g"])
    conditioned.clear()
    assert len(again.endog) == 20_000
    assert conditioned == [1]


def test_bits_of_a_seal_need_not_be_a_number():
    """Whatever the sum of the bits of a response is, even that of a signalling NaN, is no reason for a warning."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(6), 4)
    model = flc.LinearMixedModel(rng.standard_normal(24), None, None, g)
    target = np.array([0x7FF0000000000001], dtype=np.uint64)
    while True:  # a last number that brings the sum there, and is of ordinary size
        y = 2.0 * rng.standard_normal(24)  # the exponents then leave an ordinary one
        y[-1:] = (target - y[:-1].view(np.uint64).sum(dtype=np.uint64)).view(np.float64)
        if 0.01 < abs(y[-1]) < 100.0:
            break
    batch = model.fit_many(np.stack([y, rng.standard_normal(24)]))
    np.testing.assert_allclose(batch.random_effects([0])[0], model.refit(y).blups[0], rtol=1e-6, atol=1e-9)

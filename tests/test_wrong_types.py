"""Arguments of wrong types: every public function ends in a value, or in an error that names the argument.

Random calls of every public function and method, one or two arguments of which are replaced by something else.  Nothing
but a value, an LMMError or a TypeError that names the argument may come out, and soon.  FASTLMM_FUZZ sets the number of
calls (by hand: 20,000).
"""

import contextlib
import inspect
import os
import signal
import warnings
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import fastlmm_core as flc

matplotlib.use("Agg")

CALLS = int(os.environ.get("FASTLMM_FUZZ", "2500"))
SECONDS = 20
"""A call that takes longer hangs: the data are small."""

N = 48


def table():
    rng = np.random.default_rng(8)
    g, h = np.repeat(np.arange(8), 6), np.tile(np.arange(6), 8)
    x, t = rng.standard_normal(N), np.tile(np.arange(6.0), 8)
    arm = np.array(["a", "b"])[g % 2]
    y = 1.0 + 0.5 * x + rng.standard_normal(8)[g] + 0.5 * rng.standard_normal(6)[h] + rng.standard_normal(N)
    return pd.DataFrame({"y": y, "x": x, "t": t, "arm": arm, "g": g, "h": h})


def objects():
    """What there is to call, by name, and what the calls need."""
    data = table()
    X = np.column_stack([np.ones(N), data["x"]])
    model = flc.lmm("y ~ x + arm + t + (t | g)", data)
    fit = model.fit()
    small = flc.lmm("y ~ x + arm + t + (1 | g)", data).fit()
    crossed = flc.lmm("y ~ x + (1 | g) + (1 | h)", data)
    arrays = flc.LinearMixedModel(data["y"].to_numpy(), X, None, data["g"].to_numpy())
    batch = arrays.fit_many(np.vstack([data["y"], data["y"][::-1]]))
    assumed = flc.assume("y ~ x + (1 | g)", data, params=[1.0, 0.5], G=[[1.0]], sigma2=1.0)
    means = fit.emmeans("arm", contrasts="pairwise")
    curve = flc.power_curve(fit, "x", along="subjects", values=[4, 8], n_sim=4, seed=0)
    return {
        "model": model,
        "crossed model": crossed,
        "array model": arrays,
        "result": fit,
        "crossed result": crossed.fit(),
        "array result": arrays.fit(),
        "batch": batch,
        "assumed": assumed,
        "boot": fit.bootstrap(8, seed=0),
        "profile": small.profile(["sigma"]),
        "influence": fit.influence(),
        "pooling": fit.pooling(),
        "means": means,
        "contrasts": means.contrasts,
        "anova": fit.anova(),
        "comparison": flc.compare(small, fit),
        "test": fit.test("x = 0"),
        "batch test": batch.test("x1 = 0"),
        "curve": curve,
        "covariance": fit.marginal_covariance(0),
        "data": data,
        "X": X,
    }


class Odd:
    """What raises an error of its own when it is read."""

    def __array__(self, *options, **more):
        raise ZeroDivisionError


WRONG = [
    *("0.9", "x", "", b"x", 2.5, -1, 0, 3, True, None, np.nan, np.inf, 1 + 2j),
    *([], [1, 2], ["x"], [[1, 2], [3]], (), (1, "x"), {}, {"x": 1}, {1: 2}, {"x"}, range(3), iter([1])),
    *(object(), Ellipsis, int, len, lambda *a: None, slice(None), ValueError("x"), Odd(), pd.NA),
    *(date(2020, 1, 1), pd.Timestamp("2020"), np.datetime64("2020"), Decimal("1.5"), Fraction(1, 3)),
    *(np.float32(0.5), np.int8(3), np.array(1.0), np.array([]), np.array(["a"]), np.eye(3), np.zeros((2, 2, 2))),
    *(np.ma.array([1.0, 2.0], mask=[0, 1]), sp.eye(3), np.zeros(2, dtype=[("a", float)])),
    *(np.array([{}, []], dtype=object), pd.Series([1.0, 2.0]), pd.DataFrame({"x": [1.0]}), np.random.RandomState(0)),
    *(10**20, -(10**20), 10**400, 2**63, 1e308),
]
"""Wrong somewhere; what is right where it comes may have an answer."""


def needed(made):
    """A value for each argument that has no default, by the owner's name and the function's."""
    data = made["data"]
    y, X = data["y"].to_numpy(), made["X"]
    groups = data["g"].to_numpy()
    values = {
        "lmm": {"formula": "y ~ x + (1 | g)", "data": data},
        "LinearMixedModel": {"y": y, "X": X, "groups": groups},
        "RandomTerm": {"Z": None, "groups": groups},
        "assume": {"formula": "y ~ x + (1 | g)", "data": data, "params": [1.0, 0.5], "G": [[1.0]], "sigma2": 1.0},
        "power": {"source": made["result"], "test": "x", "n_sim": 4},
        "power_curve": {"source": made["result"], "test": "x", "along": "subjects", "values": [4, 8], "n_sim": 4},
        "random_effect_test": {"n_sim": 50},
        "flc.random_effect_test": {"result": made["result"], "n_sim": 50},
        **{f"flc.{name}": {"x": y, "g": groups} for name in GROUPED},
        "fit_many": {"Y": np.vstack([y, y[::-1]])},
        "refit": {"y": y},
        "evaluate": {"theta": [1.0]},
        "model.evaluate": {"theta": [1.0, 0.0, 1.0]},
        "crossed model.evaluate": {"theta": [1.0, 1.0]},
        "simulate_fit": {"n": 2},
        "bootstrap": {"n": 4},
        "test": {"hypothesis": "x = 0"},
        "batch.test": {"hypothesis": "x1 = 0"},
        "array result.test": {"hypothesis": "x1 = 0"},
        "predict": {"data": data.iloc[:2]},
        "array result.predict": {"data": {"X": X[:2]}},
        "emmeans": {"factors": "arm"},
        "slopes": {"variable": "x"},
        "marginal_covariance_at": {"at": [0.0, 1.0]},
        "icc_at": {"at": [0.0, 1.0]},
        "marginal_covariance": {"subject": 0},
        "marginal_correlation": {"subject": 0},
        "load": {"name": "dyestuff"},
        "describe": {"name": "dyestuff"},
        "zeta": {"parameter": "sigma"},
        "plots.bootstrap_density": {"boot": made["boot"]},
        "plots.emmeans": {"means": made["result"].emmeans("arm")},
        "plots.effects": {"result": made["result"], "x": "x"},
        "plots.influence_plot": {"influence": made["influence"]},
        "plots.missingness": {"model": made["model"]},
        "plots.power_curve": {"curve": made["curve"]},
        "plots.profile_zeta": {"profile": made["profile"]},
        "plots.qq": {"result": made["result"], "n_sim": 20},
    }
    return values | {
        f"plots.{name}": {"result": made["result"]}
        for name in ("caterpillar", "marginal_variance", "residual_panels", "shrinkage", "trajectories")
    }


GROUPED = ("between", "group_mean", "within")
"""Functions of any number of columns."""

SKIP = {"factor", "factor_of", "batch_design", "table", "save"}
"""Of the package's own use, though their names have no underscore."""


def _grouped(x, g, of):
    return of(x, g)


def callables(made):
    """(name, function) of everything public that can be called."""
    found = [
        (f"flc.{name}", getattr(flc, name))
        for name in flc.__all__
        if callable(getattr(flc, name)) and name not in ("LMMError", "LMMResult", "compare", *GROUPED)
    ]
    found += [(f"flc.{name}", partial(_grouped, of=getattr(flc, name))) for name in GROUPED]
    found += [(f"datasets.{name}", getattr(flc.datasets, name)) for name in ("load", "describe")]
    found += [(f"plots.{name}", getattr(flc.plots, name)) for name in flc.plots.__all__]
    for owner, thing in made.items():
        if not type(thing).__module__.startswith("fastlmm_core"):
            continue
        for name in sorted(set(dir(type(thing)))):
            if name.startswith("_") or name in SKIP or isinstance(inspect.getattr_static(type(thing), name), property):
                continue
            member = getattr(type(thing), name)
            if callable(member) and inspect.signature(member).parameters.keys() - {"self"}:
                found.append((f"{owner}.{name}", getattr(thing, name)))
    return found


def answered(found, values):
    """Those that have an answer to what they need: not every method makes sense for every model."""
    return [
        (name, function)
        for name, function in found
        if objection(function, arguments(name, function, values)[1], []) is None
    ]


def arguments(name, function, values):
    """Names of the arguments, and values for those that are needed."""
    parameters = inspect.signature(function).parameters
    own = values.get(name, values.get(name.rpartition(".")[2], {}))
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in own
    ]
    names = [
        p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in ("of",)
    ]
    return names, own, missing


@contextlib.contextmanager
def limit(seconds):
    def late(*_):
        raise TimeoutError(f"no answer within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def objection(function, given, wrong):
    """What is wrong with the outcome of a call, None if nothing is."""
    try:
        with limit(SECONDS), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            function(**given)
    except (flc.LMMError, TypeError) as error:
        said = str(error)
        # a function of the caller's may raise what it likes
        fine = any(name in said or name.rstrip("s") in said or callable(given.get(name)) for name in wrong)
        return None if fine else f"{type(error).__name__} names no argument: {said}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        plt.close("all")
    return None


@pytest.fixture(scope="module")
def made():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return objects()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs alarms")
def test_wrong_types_are_named(made):
    values = needed(made)
    found = answered(callables(made), values)
    rng = np.random.default_rng(int(os.environ.get("FASTLMM_FUZZ_SEED", "0")))
    failures = []
    for _ in range(CALLS):
        name, function = found[rng.integers(len(found))]
        names, own, missing = arguments(name, function, values)
        assert not missing, (name, missing)
        if not names:
            continue
        wrong = [names[i] for i in rng.permutation(len(names))[: 1 + (rng.random() < 0.2)]]
        given = own | {argument: WRONG[rng.integers(len(WRONG))] for argument in wrong}
        if "progress" in given:
            given["progress"] = False if given["progress"] is True else given["progress"]
        why = objection(function, given, wrong)
        if why is not None:
            shown = {argument: given[argument] for argument in wrong}
            failures.append(f"{name}({shown!r}): {why}"[:400])
    assert not failures, f"{len(failures)} of {CALLS}:\n" + "\n".join(failures)


@pytest.mark.parametrize(
    ("owner", "method", "given", "words"),
    [
        ("result", "conf_int", {"level": "0.9"}, "level must be a number, not '0.9' of type 'str'"),
        ("result", "simulate", {"n": 2.5}, "n must be an integer, not 2.5 of type 'float'"),
        ("model", "evaluate", {"theta": [1.0, 0.0, 1.0], "order": "a"}, "order must be an integer, not 'a'"),
        ("model", "fit", {"options": 5}, "options must be a dict with strings as keys or None, not 5"),
        ("model", "fit", {"reml": "ML"}, "reml must be True or False, not 'ML' of type 'str'"),
        ("model", "fit", {"reml": 1}, "reml must be True or False, not 1 of type 'int'"),
        ("array model", "fit_many", {"Y": np.eye(N), "n_jobs": "2"}, "n_jobs must be an integer or None, not '2'"),
    ],
)
def test_messages(made, owner, method, given, words):
    with pytest.raises(flc.LMMError) as error:
        getattr(made[owner], method)(**given)
    assert str(error.value).startswith(f"{method}(): {words}")


def test_messages_of_ranges_and_functions(made):
    fit, Y = made["result"], made["X"].T
    with pytest.raises(flc.LMMError, match=r"^fit\(\): reml must be True or False, not 'no' of type 'str'"):
        made["model"].fit("no")
    for call, words in (
        (lambda: fit.emmeans("arm", at="x"), "at"),
        (lambda: fit.simulate(10**20), "n=100000000000000000000 must be at most 100,000,000"),
        (
            lambda: made["array model"].fit_many(iter(Y), n_jobs=10**6),
            "n_jobs=1000000 must be -1 or between 1 and 1024",
        ),
        (lambda: flc.compare(fit, 3), "argument 2 is a int, not the result of a fit"),
        (lambda: flc.compare(fit, fit, n_sim="9"), "compare(): n_sim must be an integer or None, not '9'"),
        (lambda: flc.plots.qq(made["model"]), "qq(): result must be an LMMResult, not of type 'LinearMixedModel'"),
    ):
        with limit(2), pytest.raises(flc.LMMError) as error:
            call()
        assert words in str(error.value)


def test_unknown_keywords_are_told_by_the_function_called(made):
    data = made["data"]
    for call, words in (
        (lambda: made["model"].fit(reml_=True), "fit() has no argument 'reml_': did you mean 'reml'?"),
        (lambda: made["model"].refit(data["y"], strat=[1.0]), "refit() has no argument 'strat': did you mean 'start'?"),
        (lambda: made["result"].predict(data, intervals="mean"), "predict() has no argument 'intervals'"),
        (lambda: made["result"].random_effect_test(n_sin=10), "random_effect_test() has no argument 'n_sin'"),
        (lambda: flc.plots.qq(made["result"], levels=0.9), "qq() has no argument 'levels': did you mean 'level'?"),
        (lambda: flc.RandomTerm(None, data["g"], nam="g"), "RandomTerm() has no argument 'nam': did you mean 'name'?"),
        (lambda: flc.LinearMixedModel(data["y"], weigths=1), "LinearMixedModel() has no argument 'weigths': did you"),
    ):
        with pytest.raises(TypeError) as error:
            call()
        assert words in str(error.value)


def test_scalars_of_numpy_are_numbers(made):
    """And their widths do not spread to what is computed with them."""
    fit = made["result"]
    assert fit.bootstrap(np.int8(3), seed=np.uint8(1)).replicates.shape[0] == 3
    np.testing.assert_array_equal(fit.simulate(np.int16(2), np.int64(5)), fit.simulate(2, 5))
    np.testing.assert_array_equal(fit.conf_int(np.float32(0.5)), fit.conf_int(0.5))
    assert made["model"].fit(np.True_).criterion == fit.criterion


@pytest.mark.parametrize("method", ["conf_int", "variance_components", "tidy"])
def test_levels_that_are_no_confidence(made, method):
    """Half of the packages take the share outside the limits; what is meant is told."""
    for level, words in (
        (0.05, "level=0.05 is the share that the limits are to cover, not the share outside them; write level=0.95"),
        (5, "level=5 must lie between 0 and 1, e.g. 0.95"),
        (95, "level=95 must lie between 0 and 1; write 0.95"),
        (1.0, "level=1.0 must lie between 0 and 1"),
        (float("nan"), "level=nan must lie between 0 and 1"),
    ):
        with pytest.raises(flc.LMMError) as error:
            getattr(made["result"], method)(level=level)
        assert words in str(error.value)

"""One word for one thing: the names of CONTRIBUTING, held against every public class, signature and table."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits

OTHER_WORDS = {
    "p_value": "pvalue", "p_values": "pvalues", "pval": "pvalue", "p": "pvalue",
    "se": "std_error", "stderr": "std_error", "standard_error": "std_error", "standard_errors": "std_error",
    "lower": "conf_low", "upper": "conf_high", "ci_low": "conf_low", "ci_high": "conf_high",
    "coverage": "level", "conf_level": "level", "confidence": "level", "estimates": "estimate",
    "df_den": "df_denom", "ddof": "df", "den_df": "df_denom",
}  # fmt: skip
"""Words that are not used, and the ones that are."""

COLUMNS = {"pvalue": "p_value", "pvalues": "p_value", "parameter": "term"} | {
    word: ours for word, ours in OTHER_WORDS.items() if word != "p_value"
}


def public_modules():
    return [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(flc.__path__, "fastlmm_core.")
        if not re.search(r"\._|__main__|\.kernels", found.name)
    ]


def public_classes():
    for module in public_modules():
        for name, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ == module.__name__ and not name.startswith("_"):
                yield found


def names_of(kind):
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return {name for name in {*fields, *getattr(kind, "_fields", ()), *vars(kind)} if not name.startswith("_")}


def test_attributes():
    kinds = list(public_classes())
    assert len(kinds) > 40
    wrong = {(kind.__name__, name) for kind in kinds for name in names_of(kind) & set(OTHER_WORDS)}
    assert not wrong


def test_arguments():
    wrong = set()
    callables = [one for name in flc.__all__ if inspect.isroutine(one := getattr(flc, name))]
    for kind in public_classes():
        callables += [vars(kind)[name] for name in names_of(kind) if inspect.isfunction(vars(kind).get(name))]
    assert len(callables) > 100
    for one in callables:
        parameters = inspect.signature(one).parameters
        wrong |= {(one.__qualname__, name) for name in set(parameters) & (set(OTHER_WORDS) - {"p"})}
        level = parameters.get("level")
        # a confidence level, and nothing else
        if level is not None and level.default not in (inspect.Parameter.empty, None, 0.95, 0.99):
            wrong.add((one.__qualname__, "level"))
    assert not wrong


@pytest.fixture(scope="module")
def fit():
    return fits.fitted(fits.SLEEPSTUDY, "sleepstudy")


def tables(fit):
    cake = fits.fitted("angle ~ recipe + temperature + (1 | recipe:replicate)", "cake")
    means = cake.emmeans("recipe", contrasts="pairwise")
    batch = fit.model.fit_many(fit.simulate(3, 1))
    smaller = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    orthodont = flc.lmm("distance ~ age + (1 | Subject)", flc.datasets.load("orthodont").iloc[1:]).fit()
    trial = flc.assume(
        "y ~ x + (1 | g)", {"x": np.arange(60.0) % 5, "g": np.arange(60) // 5}, [0.0, 1.0], G=[[1.0]], sigma2=1.0
    )
    yield from (fit.tidy("fixed"), fit.tidy("ran_pars"), fit.tidy("ran_vals"), fit.variance_components())
    yield from (fit.conf_int(), fit.conf_int(method="profile"), fit.residual_tests(), fit.mahalanobis())
    yield from (fit.test("Days = 0").to_frame(), fit.predict(interval="confidence"), fit.autocorrelation())
    yield from (cake.anova().to_frame(), means.to_frame(), means.contrasts, means.joint_test().to_frame())
    yield from (batch.to_frame(), batch.tidy(), batch.test("Days").to_frame(), flc.compare(smaller, fit).to_frame())
    yield from (
        fit.random_effect_test().to_frame(),
        fit.influence().to_frame(),
        orthodont.contextual_effect().to_frame(),
    )
    yield fit.profile("sigma").conf_int()
    yield flc.power_curve(trial, "x", "effect", [0.5, 1.0], n_sim=20, seed=1).to_frame()


def test_columns(fit):
    seen = set()
    for table in tables(fit):
        names = {str(name) for name in (table if isinstance(table, dict) else pd.DataFrame(table).columns)}
        assert not names & set(COLUMNS), names & set(COLUMNS)
        seen |= names
    wanted = {
        "term",
        "estimate",
        "std_error",
        "df",
        "df_num",
        "df_denom",
        "statistic",
        "p_value",
        "conf_low",
        "conf_high",
    }
    assert wanted <= seen


def test_variance_parameters_have_one_name_and_one_order(fit):
    expected = ["sd_Intercept|Subject", "cor_Intercept.Days|Subject", "sd_Days|Subject", "sigma"]
    assert list(fit.tidy("ran_pars").term) == expected
    assert list(fit.variance_components().term[:4]) == expected
    assert list(fit.conf_int(method="profile").index[2:]) == expected
    assert list(fit.bootstrap(3, seed=1).names[2:]) == expected
    frame = fit.model.fit_many(fit.simulate(2, 1)).to_frame()
    assert [name for name in frame.columns if name in expected] == expected
    squares = ["var_Intercept|Subject", "cov_Intercept.Days|Subject", "var_Days|Subject", "sigma2"]
    assert list(fit.influence().rvc_names) == list(fit.variance_components().term[4:8]) == squares
    theta = fit.variance_components().query("kind == 'theta'")
    assert list(theta.term) == ["theta_Intercept|Subject", "theta_Intercept.Days|Subject", "theta_Days|Subject"]
    np.testing.assert_allclose(theta.estimate, fit.theta, rtol=1e-12)

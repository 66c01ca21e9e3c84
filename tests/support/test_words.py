"""Mistakes of people who come from lme4, statsmodels or R: what they write, the error, and words that it must hold."""

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

ON_A_RESULT = [
    ("ranef", "result.random_effects"), ("fixef", "result.params"), ("vcov", "result.cov_params()"),
    ("VarCorr", "result.G"), ("varcorr", "result.G"), ("coef", "result.pooling()"), ("confint", "result.conf_int("),
    ("update", "flc.lmm("), ("fe_params", "result.params"), ("bse_fe", "result.bse"), ("cov_re", 'result.G["g"]'),
    ("scale", "result.sigma2"), ("vcomp", "result.G"), ("t_test", "result.test(L)"), ("f_test", "result.test(L)"),
    ("wald_test", "result.test(L)"), ("wald_test_terms", "result.anova()"), ("get_prediction", "result.predict("),
    ("profile_re", "result.profile()"), ("random_effects_cov", "result.random_effects_covariance()"),
    ("getME", "result.theta"), ("REMLcrit", "result.criterion"), ("deviance", "result.criterion"),
    ("logLik", "result.llf"), ("AIC", "result.aic"), ("BIC", "result.bic"), ("aicc", "flc.compare("),
    ("fitted", "result.fittedvalues"), ("refit", "result.model.refit(y)"), ("bootMer", "result.bootstrap("),
    ("drop1", "result.anova()"), ("step", "flc.compare("), ("isSingular", "result.singular"),
    ("is_singular", "result.singular"), ("rePCA", "result.principal_components("), ("ngrps", "result.n_groups"),
    ("formula", "result.model.spec.formula"), ("data", "rows_used"), ("plot", "flc.plots.residual_panels(result)"),
    ("remove_data", "result.save(path)"), ("contest", "result.test(L)"), ("ranova", "flc.random_effect_test(result)"),
    ("KRmodcomp", 'ddf="kenward-roger"'), ("emtrends", "result.slopes("), ("lsmeans", "result.emmeans("),
    ("exactRLRT", 'null="exact"'), ("cooks_distance", "result.influence()"), ("rsquared", "result.r2()"),
    ("compare_lr_test", "flc.compare("), ("df_modelwc", "result.df_resid"), ("k_fe", "exog_names"),
    ("bse_re", "result.variance_components()"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), ON_A_RESULT)
def test_attributes_of_a_result(name, said):
    with pytest.raises(AttributeError) as caught:
        getattr(result(), name)
    message = str(caught.value)
    assert message.startswith(f"'LMMResult' object has no attribute {name!r}: instead of ")
    assert said in message and "`" not in message


ON_A_MODEL = [
    ("params", "result = model.fit(), then result.params"), ("summary", "then result.summary(...)"),
    ("pvalues", "fit the model first"), ("sigma2", "then result.sigma2"), ("conf_int", "fit the model first"),
    ("predict", "fit the model first"), ("random_effects", "fit the model first"), ("converged", "fit the model first"),
    ("ranef", "result.random_effects"), ("t_test", "result.test(L)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), ON_A_MODEL)
def test_attributes_of_a_model(name, said):
    with pytest.raises(
        AttributeError, match=re.escape(f"'LinearMixedModel' object has no attribute {name!r}")
    ) as caught:
        getattr(model(), name)
    assert said in str(caught.value)


def test_everything_that_a_result_has_is_missed_on_a_model():
    names = {name for name in {*dir(result()), *vars(result())} if not name.startswith("_") and name != "model"}
    for name in names - {*dir(model()), *vars(model())}:
        with pytest.raises(AttributeError, match="fit the model first"):
            getattr(model(), name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixedlm", 'flc.lmm("y ~ x + (1 | g)", d)'), ("MixedLM", "flc.LinearMixedModel("), ("lmer", "flc.lmm("),
        ("ranova", "flc.random_effect_test("), ("powerSim", "flc.power"),
    ],
)  # fmt: skip
def test_functions_of_the_package(name, said):
    with pytest.raises(AttributeError, match=f"module 'fastlmm_core' has no attribute '{name}': instead of") as caught:
        getattr(flc, name)
    assert said in str(caught.value)


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

FORMULAS = [
    ("y ~ factor(h) + (1 | g)", "factor()", "C(h)"),
    ("y ~ as.factor(h) + (1 | g)", "as.factor()", "C(h)"),
    ("y ~ as.character(h) + (1 | g)", "as.character()", "C(h)"),
    ("y ~ relevel(h, ref='b') + (1 | g)", "relevel()", "C(h, Treatment('b'))"),
    ("y ~ ordered(h) + (1 | g)", "ordered()", "C(h, Poly)"),
    ("y ~ ns(x, 3) + (1 | g)", "ns()", "cr(x, df=4)"),
    ("y ~ rcs(x, 4) + (1 | g)", "rcs()", "cr(x, df=4)"),
    ("y ~ s(x) + (1 | g)", "s()", "bs(x, df=5)"),
    ("y ~ x + offset(z) + (1 | g)", "offset()", 'offset="z"'),
    ("y ~ Q('my x') + (1 | g)", "Q()", "`my x`"),
    ("y ~ sqrt(x) + (1 | g)", "sqrt()", "np.sqrt(x)"),
    ("sqrt(y) ~ x + (1 | g)", "sqrt()", "np.sqrt(x)"),
    ("y ~ interaction(h, k) + (1 | g)", "interaction()", "a:b"),
    ("y ~ as.numeric(h) + (1 | g)", "as.numeric()", "a column of the table"),
    ("y ~ cut(x, 3) + (1 | g)", "cut()", "a column of the table"),
    ("y ~ x + (ns(x, 3) | g)", "ns()", "cr(x, df=4)"),
    ("y ~ I(x^2) + (1 | g)", "I(x ^ 2)", "I(x**2)"),
    ("y ~ I(k^2) + (1 | g)", "exclusive or", "I(k**2)"),
    ("y ~ I(`my x`^2) + (1 | g)", "exclusive or", "I(`my x`**2)"),
    ("y ~ x + (I(x^2) | g)", "exclusive or", "I(x**2)"),
    ("y ~ my x + (1 | g)", "my x", "`my column`"),
    ("y ~ x + (1 | g)  # comment", "comments", "leave them out"),
    ("y ~ x + g", "no random-effects term", "(1 | g)"),
    ("y ~ x + 1 | g", "outside parentheses", "(1 | g)"),
    ("y ~ . + (1 | g)", "'.'", "name the columns"),
]


@pytest.mark.parametrize(("formula", "named", "said"), FORMULAS)
def test_formulas(formula, named, said):
    with pytest.raises(flc.LMMError) as caught:
        flc.lmm(formula, data())
    assert named in str(caught.value) and said in str(caught.value)


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


NO_TABLES = [
    (lambda d: "data.csv", "pandas.read_csv(path)"),
    (lambda d: Path("data.csv"), "pandas.read_csv(path)"),
    (lambda d: d.groupby("g"), "(1 | g)"),
    (lambda d: d.to_dict("records"), "pandas.DataFrame(data)"),
    (lambda d: d.to_records(), "pandas.DataFrame(data)"),
    (lambda d: d[["x", "z"]].to_numpy(), "LinearMixedModel(y, X, Z, groups)"),
    (lambda d: d.x, ".to_frame()"),
    (lambda d: pytest.importorskip("polars").LazyFrame({"x": [1.0]}), ".collect()"),
    (lambda d: None, "not 'NoneType'."),
]


@pytest.mark.parametrize(("made", "said"), NO_TABLES)
def test_things_that_are_no_tables(made, said):
    with pytest.raises(flc.LMMError, match="`data` must be a pandas or polars DataFrame") as caught:
        flc.lmm("y ~ x + (1 | g)", made(data()))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("lbfgs", "'L-BFGS-B'"), ("nelder", "'Nelder-Mead'"), ("neldermead", "'Nelder-Mead'"), ("bfg", "'BFGS'"),
        ("bobyqa", "'COBYLA'"), ("powel", "'Powell'"),
    ],
)  # fmt: skip
def test_optimisers(method, said):
    with pytest.raises(flc.LMMError, match=f"method='{method}' is unknown: use 'newton' or .*{said}"):
        model().fit(method=method)


def test_other_ways_to_compare():
    with pytest.raises(flc.LMMError, match=r"argument 1 is a list.*compare\(\*results\)"):
        flc.compare([result(), result()])
    with pytest.raises(flc.LMMError, match=r"models are compared by compare\(m1, m2\)"):
        result().anova(result())


def test_groups_of_within():
    with pytest.raises(flc.LMMError, match=r"'within\(x\)': the groups are missing: .*within\(x, g\)$"):
        flc.lmm("y ~ within(x) + (1 | g)", data())


def test_swapped_arguments():
    with pytest.raises(flc.LMMError, match=r"formula.*data.*swapped.*lmm\(formula, data\)"):
        flc.lmm(data(), "y ~ x + (1 | g)")


def test_formulas_of_emmeans():
    with pytest.raises(flc.LMMError, match=r"'pairwise ~ h' is a formula.*contrasts='pairwise'"):
        result().emmeans("pairwise ~ h")


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


CALLS = [
    (lambda: flc.lmm("y ~ x", data(), groups="g"), "lmm() has no argument 'groups': the groups stand in the formula"),
    (lambda: flc.lmm("y ~ x", data(), re_formula="~x"), "lmm('y ~ x + (x | g)', data)"),
    (lambda: flc.lmm("y ~ x", data(), vc_formula={"h": "0 + C(h)"}), "(1 | g/h)"),
    (lambda: flc.lmm("y ~ x + (1 | g)", data(), REML=False), "lmm(...).fit(reml=False)"),
    (lambda: flc.lmm("y ~ x + (1 | g)", data(), family="binomial"), "Gaussian"),
    (lambda: flc.LinearMixedModel(endog=data().y, groups=data().g), "the response is called y"),
    (lambda: flc.LinearMixedModel(data().y, exog_re=data().x, groups=data().g), "are called Z"),
    (lambda: model().fit(REML=False), "fit() has no argument 'REML': it is called reml"),
    (lambda: model().fit(maxiter=10), "options={'maxiter': 50}"),
    (lambda: result().predict(re_form=None), "predict() has no argument 're_form': whose effects are added"),
    (lambda: result().predict(coverage=0.9), "level=0.95"),
    (lambda: result().predict(allow_new_levels=True), "new_levels='population'"),
    (lambda: result().predict(levle=0.9), "did you mean 'level'"),
    (lambda: result().conf_int(alpha=0.05), "conf_int() has no argument 'alpha': intervals have a level="),
    (lambda: result().summary(digits=3), "tidy() has the numbers"),
    (lambda: result().simulate(nsim=3), "the first argument, n"),
    (lambda: result().bootstrap(10, FUN=len), "called statistic"),
    (lambda: result().residuals(type="pearson"), "residuals() has no argument 'type': it is called kind"),
    (lambda: result().emmeans("h", method="pairwise"), "contrasts="),
    (lambda: result().anova(typ=2), "it is called type"),
]


@pytest.mark.parametrize(("call", "said"), CALLS)
def test_calls_with_the_arguments_of_others(call, said):
    with pytest.raises(TypeError) as caught:
        call()
    assert said in str(caught.value)


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

"""What users of lme4, its companions and statsmodels write, and the words for it here.

One table for everything that speaks to newcomers: the errors for attributes, arguments and functions that do not exist
here, and the pages "Coming from lme4" and "Coming from statsmodels" of the documentation.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ARGUMENTS", "FORMULAS", "LME4", "OPTIONS", "READING", "TABLES", "WRITING", "Word"]


class Word(NamedTuple):
    """One thing in another package's words and in ours.

    Attributes
    ----------
    theirs, here : str
        Code in Markdown: with backticks.
    note : str
    names : tuple of str
        Names of theirs that an error can point out.
    """

    theirs: str
    here: str
    note: str = ""
    names: tuple[str, ...] = ()


# ---- lme4 and friends ----------------------------------------------------------------------------------------------

LME4 = (
    Word("`lmer(y ~ x + (x | g), d)`", '`flc.lmm("y ~ x + (x | g)", d).fit()`', names=("lmer", "lme", "blmer")),
    Word("`lmer(..., REML = FALSE)`", "`.fit(reml=False)`"),
    Word("`lmer(..., weights = w, offset = o)`", '`flc.lmm(..., weights="w", offset="o")`'),
    Word("`update(m, . ~ . + z)`", '`result.update(". ~ . + z")`, without a fit `model.update(...)`'),
    Word("`summary(m)` (with lmerTest)", "`result.summary()`"),
    Word("`fixef(m)`, `vcov(m)`", "`result.params`, `result.cov_params()`",
         names=("fixef", "vcov", "fixed_effects", "coefficients", "coef_", "beta_")),
    Word(
        "`VarCorr(m)`, `sigma(m)`",
        "`result.G`, `result.random_effects_sd`, `result.random_effects_corr`, `result.sigma`",
        names=("VarCorr",),
    ),
    Word(
        "`as.data.frame(VarCorr(m))`",
        '`result.tidy("ran_pars")`, with intervals `result.variance_components()`',
    ),
    Word(
        "`ranef(m)`, with `condVar = TRUE`",
        "`result.random_effects`, `result.random_effects_covariance()`",
        names=("ranef",),
    ),
    Word("`coef(m)`", "`result.pooling().to_frame()`, column `partial_pooling`", names=("coef",)),
    Word(
        '`getME(m, "theta")`, `getME(m, c("X", "Z"))`',
        "`result.theta`, `model.exog`, `model.exog_re` (rows of Z, not the sparse matrix)",
        names=("getME",),
    ),
    Word(
        "`REMLcrit(m)`, `deviance(m)`, `logLik(m)`",
        "`result.criterion`, `result.llf`",
        names=("REMLcrit", "deviance", "logLik", "loglik"),
    ),
    Word("`AIC(m)`, `BIC(m)`", "`result.aic`, `result.bic`", names=("AIC", "BIC")),
    Word("`cAIC4::cAIC(m)`", "`result.conditional_aic()`", names=("cAIC", "caic")),
    Word(
        "`MuMIn::r.squaredGLMM(m)`, `r2glmm::r2beta(m)`", "`result.r2()`, `result.partial_r2()`",
        names=("r2beta", "squaredGLMM"),
    ),
    Word("`AICc(m)`", "`flc.compare(m1, m2)`, column `aicc`", names=("aicc", "AICc")),
    Word(
        "`fitted(m)`, `resid(m)`",
        "`result.fittedvalues`, `result.resid`, `result.residuals(kind)`",
        names=("fitted",),
    ),
    Word("`predict(m, new, re.form = NA)`", "`result.predict(new)`"),
    Word("`predict(m, new)`", '`result.predict(new, effects="all")`'),
    Word("`predict(m, new, re.form = ~(1 | g))`", '`result.predict(new, effects="g")`'),
    Word("`lmer(..., na.action = na.exclude)`", '`flc.lmm(..., missing="pad")`'),
    Word("`predict(..., na.action = na.pass)`", '`result.predict(..., missing="nan")`'),
    Word("`predict(..., allow.new.levels = TRUE)`", '`result.predict(..., new_levels="population")`'),
    Word("`simulate(m, 1000)`", "`result.simulate(1000)`; responses are rows"),
    Word("`simulate(m, use.u = TRUE)`", '`result.simulate(1000, effects="all")`', names=("use_u",)),
    Word("`simulate(m, newdata = d, re.form = NULL)`", '`result.simulate(1000, data=d, effects="all")`'),
    Word(
        "`simulate(~ x + (x | g), newdata = d, newparams = list(...))`",
        "`flc.assume(formula, d, params, G, sigma2).simulate(1000)`; of a fit `result.at(params=, G=, sigma2=)`",
        names=("simulate_formula", "newparams"),
    ),
    Word("`refit(m, y)`", "`result.model.refit(y)`, for many `result.model.fit_many(Y)`", names=("refit",)),
    Word(
        "`bootMer(m, f, 1000)`",
        "`result.bootstrap(1000)`, of your own statistic `result.bootstrap(1000, statistic=f)`",
        names=("bootMer", "bootmer", "boot"),
    ),
    Word(
        "`confint(m)`, `profile(m)`",
        '`result.conf_int(method="profile")`, `result.profile()`; as in lme4 all by ML: `result.profile(reml=False)`',
        names=("confint",),
    ),
    Word("`anova(m1, m2)`", "`flc.compare(m1, m2)`", names=("lrtest",)),
    Word("`anova(m, lm(y ~ x, d))`", '`flc.compare(flc.lmm("y ~ x", d, residual="id(visit | id)").fit(), m)`'),
    Word("`drop1(m)`", '`result.drop1()`, `result.drop1(test="kenward-roger")`'),
    Word("`nlme::augPred(m, ~ x)`", '`result.predict_along("x")`', names=("augPred",)),
    Word(
        "`lmerTest::step(m)`, `buildmer::buildmer(f, d)`",
        "`result.step()`, of the random part alone `result.simplify()`",
        names=("buildmer",),
    ),
    Word("`isSingular(m)`", "`result.singular`, `result.singular_components`", names=("isSingular", "is_singular")),
    Word("`rePCA(m)`", "`result.principal_components(correlation=False)`", names=("rePCA", "repca")),
    Word("`ngrps(m)`, `nobs(m)`", "`result.n_groups`, `result.nobs`", names=("ngrps", "ngroups")),
    Word(
        "`formula(m)`, `model.frame(m)`",
        "`result.model.spec.formula`; the rows used are `data.iloc[result.rows_used]`",
        names=("formula", "data"),
    ),
    Word(
        "`plot(m)`, `lattice::dotplot(ranef(m))`",
        "`result.plot()`, `flc.plots.residual_panels(result)`, `flc.plots.caterpillar(result)`",
        names=("dotplot",),
    ),
    Word("`saveRDS(m, file)`, `readRDS(file)`", "`result.save(path)`, `flc.load(path)`"),
    Word(
        '`lmerTest::anova(m, ddf = "Kenward-Roger")`',
        '`result.anova(ddf="kenward-roger", information="expected")`; the default differs at singular fits',
    ),
    Word("`lmerTest::contest(m, L)`", "`result.test(L)`", names=("contest",)),
    Word("`lmerTest::ranova(m)`", "`flc.random_effect_test(result)`", names=("ranova", "rand")),
    Word(
        '`clubSandwich::coef_test(m, "CR2")`, `Wald_test`',
        '`result.tidy(vcov="CR2")`, `result.test(L, vcov="CR2")`',
        names=("vcovCR", "coef_test", "Wald_test"),
    ),
    Word(
        "`pbkrtest::KRmodcomp(m1, m0)`, `SATmodcomp`",
        '`flc.compare(m0, m1, test="kenward-roger")`, of a matrix `result.test(L, ddf="kenward-roger")`',
        names=("KRmodcomp", "SATmodcomp"),
    ),
    Word("`pbkrtest::PBmodcomp(m1, m0)`", '`flc.compare(m0, m1, null="bootstrap")`', names=("PBmodcomp",)),
    Word(
        "`emmeans::emmeans(m, pairwise ~ a)`",
        '`result.emmeans("a", contrasts="pairwise")`',
        names=("lsmeans", "difflsmeans", "pairs", "marginal_means", "pairwise", "contrast", "tukey_hsd"),
    ),
    Word(
        '`emmeans::emmeans(m, trt.vs.ctrl ~ a, ref = "b")`',
        '`result.emmeans("a", contrasts="reference", ref="b")`',
    ),
    Word(
        '`contrast(emm, interaction = c("pairwise", "consec"))`',
        '`means.contrast({"a": "pairwise", "b": "consecutive"})`',
    ),
    Word('`emmeans(m, "a", type = "response")`', '`result.emmeans("a", transform="response")`'),
    Word('`emmeans(m, "a", weights = "proportional")`', '`result.emmeans("a", weights="proportional")`'),
    Word("`multcomp::cld(emm)`", "`means.letters()`"),
    Word('`emmeans::emtrends(m, "a", var = "x")`', '`result.slopes("x", "a")`', names=("emtrends",)),
    Word(
        "`mice::pool(with(imp, lmer(...)))`",
        "`flc.pool([flc.lmm(formula, d).fit() for d in imputed])`",
    ),
    Word(
        "`texreg`, `stargazer`, `modelsummary`, `sjPlot::tab_model`",
        "`flc.table(m1, m2)`, `.as_latex()`",
    ),
    Word("`report::report(m)`", "`result.report()`"),
    Word("`RLRsim::exactRLRT(m)`", '`flc.random_effect_test(result, null="exact")`', names=("exactRLRT",)),
    Word(
        "`influence.ME`, `HLMdiag`",
        '`result.influence()`, `result.influence("observation")`',
        names=("cooks_distance", "hatvalues"),
    ),
    Word("`simr::powerSim`, `powerCurve`", "`flc.power`, `flc.power_curve`", names=("powerSim", "powerCurve")),
    Word("`performance::icc`, `r2`", "`result.icc()`, `result.r2()`", names=("rsquared", "r_squared", "rsquared_adj")),
)  # fmt: skip

# ---- statsmodels ---------------------------------------------------------------------------------------------------

WRITING = (
    Word('`smf.mixedlm("y ~ x", d, groups="g")`', '`flc.lmm("y ~ x + (1 | g)", d)`', names=("mixedlm", "from_formula")),
    Word('`..., groups="g", re_formula="~x"`', '`"y ~ x + (x | g)"`'),
    Word('`..., re_formula="~0 + x"`', '`"y ~ x + (0 + x | g)"`'),
    Word('`..., re_formula="1", vc_formula={"h": "0 + C(h)"}`', '`"y ~ x + (1 | g/h)"`'),
    Word("independent effects, `free=MixedLMParams.from_components(...)`", '`"y ~ x + (x || g)"`'),
    Word("`MixedLM(y, X, groups, Z)`", "`flc.LinearMixedModel(y, X, Z, groups)`", names=("MixedLM",)),
    Word("`.fit(reml=True)`", "`.fit(reml=True)`"),
    Word('`.fit(method=["bfgs", "lbfgs"])`', '`.fit(method="BFGS")`, not needed'),
    Word(
        '`.fit(cov_type="cluster", cov_kwds={"groups": g})` of other models',
        '`.fit()`, then `result.tidy(vcov="CR2")`, `result.test(L, vcov="CR2", cluster=g)`',
    ),
)

READING = (
    Word(
        "`fe_params`",
        "`result.params`",
        "statsmodels' `params` appends the variance parameters; here they are apart",
        ("fe_params",),
    ),
    Word(
        "`bse_fe`, `tvalues`, `pvalues`",
        "`result.bse`, `result.tvalues`, `result.pvalues`",
        "fixed effects only; t tests with Satterthwaite's degrees of freedom, where statsmodels has z",
        ("bse_fe",),
    ),
    Word("`conf_int()`", "`result.conf_int()`", 'same difference; `ddf="normal"` gives statsmodels\''),
    Word("`conf_int(alpha=0.1)`", "`result.conf_int(0.9)`", "the level is that of the interval"),
    Word("`cov_params()`", "`result.cov_params()`", "fixed effects only", ("normalized_cov_params",)),
    Word("`cov_re`", '`result.G["g"]`', "by term", ("cov_re", "cov_re_unscaled")),
    Word("`scale`", "`result.sigma2`", "", ("scale",)),
    Word("`vcomp`", "`result.G`", "", ("vcomp",)),
    Word("`bse_re`", "`result.variance_components()`", "with intervals", ("bse_re",)),
    Word("`random_effects` (dict of Series)", "`result.random_effects` (one frame)"),
    Word("`random_effects_cov`", "`result.random_effects_covariance()`", "", ("random_effects_cov",)),
    Word("`llf`, `aic`, `bic`", "`result.llf`, `result.aic`, `result.bic`", "statsmodels has none by REML"),
    Word("`fittedvalues`, `resid`", "`result.fittedvalues`, `result.resid`", "given the random effects, in both"),
    Word("`predict(exog)`", "`result.predict(data)`", 'with `effects="all"` the random effects are included'),
    Word("`get_prediction(...)`", '`result.predict(..., interval="confidence")`', "", ("get_prediction",)),
    Word("`t_test(L)`, `f_test(L)`, `wald_test(L)`", "`result.test(L)`", 'also of text, `"x = 0"`',
         ("t_test", "f_test", "wald_test", "t_test_pairwise")),
    Word("`wald_test_terms()`", "`result.anova()`", "", ("wald_test_terms",)),
    Word("`compare_lr_test(m)`", "`flc.compare(m1, m2)`", "with the distribution that is right on the boundary",
         ("compare_lr_test", "compare_f_test")),
    Word(
        "`converged`",
        "`result.converged`, `result.gradient_norm`, `result.singular`",
        "here `converged` is a certificate",
        ("mle_retvals",),
    ),
    Word("`profile_re(...)`", '`result.profile()`, `result.conf_int(method="profile")`', "", ("profile_re",)),
    Word("`remove_data()`, `save(file)`, `load(file)`", "`result.save(path)`, `flc.load(path)`", "", ("remove_data",)),
    Word("`use_t`, `df_modelwc`", "`result.df`, `result.df_resid`", "degrees of freedom of each coefficient",
         ("use_t", "df_modelwc", "df_model")),
    Word("`k_fe`, `k_re`, `exog_names`", "`result.model.exog_names`, `result.model.exog_re_names`", "",
         ("k_fe", "k_re", "k_re2", "k_vc")),
)  # fmt: skip

# ---- formulas ------------------------------------------------------------------------------------------------------

FORMULAS = (
    Word('`dummy(h, "b")`', "`I(h == 'b')`", names=("dummy",)),
    Word("`factor(h)`, `as.factor(h)`", "`C(h)`", "texts are categorical without it",
         ("factor", "as.factor", "as.character", "as_factor")),
    Word('`relevel(h, ref = "b")`', "`C(h, Treatment('b'))`", "", ("relevel", "fct_relevel")),
    Word("`contr.sum`, `contr.helmert`", "`C(h, Sum)`, `C(h, Helmert)`", "", ("contr.sum", "contr.helmert")),
    Word("`ordered(h)`", "`C(h, Poly)`", "", ("ordered", "as.ordered")),
    Word("`I(x^2)`", "`I(x**2)`", "inside `I()` stands Python; `x**2` alone is a product of factors, and equals `x`"),
    Word("`sqrt(x)`", "`np.sqrt(x)`", "so with all functions of numpy", ("sqrt",)),
    Word("`ns(x, 3)`, `rcs(x, 4)`", "`cr(x, df=4)`", "one more: the constant is among them; B-splines are `bs`",
         ("ns", "rcs")),
    Word("`s(x)`", "`bs(x, df=5)`", "without a penalty", ("s", "te")),
    Word("`x - mean(x)`", "`center(x)`", "and functions of numpy: `np.mean(x)`", ("mean", "sd", "median", "var")),
    Word("`cbind(y1, y2)`", "one response at a time", "many on one design: `model.fit_many(Y)`", ("cbind",)),
    Word("`TRUE`, `FALSE`, `NULL`", "`True`, `False`, `None`"),
    Word("`offset(z)`", '`offset="z"`, an argument of `lmm`', "", ("offset",)),
    Word("`interaction(a, b)`", "`a:b`", "", ("interaction",)),
    Word("`Q('my x')`", "`` `my x` ``", "names in backticks", ("Q",)),
    Word("`as.numeric(x)`, `cut(x, 3)`, `ifelse(...)`", "a column of the table", "computed before the fit",
         ("as.numeric", "as.integer", "as.logical", "cut", "ifelse", "is.na", "droplevels")),
)  # fmt: skip

# ---- arguments -----------------------------------------------------------------------------------------------------

_BAR = "the groups stand in the formula, after a bar: lmm('y ~ x + (1 | g)', data)"
_RANDOM = "random slopes stand in the formula, before a bar: lmm('y ~ x + (x | g)', data)"
_COMPONENTS = "every random effect stands in the formula: lmm('y ~ x + (1 | g/h)', data), or (1 | g) + (1 | h)"
_EFFECTS = "whose effects are added is said by effects='population', 'all' or names of grouping factors"
_LEVEL = "intervals have a level=, e.g. level=0.95"
_DRAWS = "the number of draws is the first argument, n"
_GAUSSIAN = "responses are Gaussian here; generalised models are not part of this library"

ARGUMENTS: dict[str, dict[str, str]] = {
    "lmm": {
        "groups": _BAR,
        "group": _BAR,
        "subject": _BAR,
        "re_formula": _RANDOM,
        "random": _RANDOM,
        "exog_re": _RANDOM,
        "vc_formula": _COMPONENTS,
        "family": _GAUSSIAN,
        "REML": "it is an argument of fit: lmm(...).fit(reml=False)",
        "reml": "it is an argument of fit: lmm(...).fit(reml=False)",
        "method": "it is an argument of fit: lmm(...).fit(method='BFGS')",
        "control": "there is nothing to set; an optimiser of scipy is chosen by lmm(...).fit(method='BFGS')",
        "subset": "filter the table before the fit",
        "na_action": "missing='drop' or 'raise' says what to do with missing values",
        "contrasts": "contrasts stand in the formula: C(h, Sum), C(h, Treatment('b'))",
        "use_sqrt": "the parametrisation cannot be chosen",
    },
    "LinearMixedModel": {
        "endog": "the response is called y",
        "exog": "the columns of the fixed effects are called X",
        "exog_re": "the columns of the random effects are called Z",
        "exog_vc": "several random-effects terms are given as terms=[RandomTerm(Z, groups, name=...), ...]",
        "group": "the labels are called groups",
        "random": "the columns of the random effects are called Z",
        "formula": "formulas are for lmm(formula, data)",
        "data": "tables are for lmm(formula, data)",
        "missing": "arrays must be complete; lmm(formula, data) drops rows with missing values",
    },
    "fit": {
        "REML": "it is called reml",
        "ml": "maximum likelihood is fit(reml=False)",
        "ML": "maximum likelihood is fit(reml=False)",
        "optimizer": "it is called method: 'newton' or a method of scipy.optimize.minimize",
        "control": "it is called options: those of the method, e.g. options={'maxiter': 50}",
        "maxiter": "it is one of the options: options={'maxiter': 50}",
        "start_params": "it is called start",
        "cov_type": "robust covariances are asked for afterwards: result.tidy(vcov='CR2')",
        "cov_kwds": "robust covariances are asked for afterwards: result.tidy(vcov='CR2', cluster=...)",
        "free": "independent random effects stand in the formula: (x || g)",
        "ddf": "degrees of freedom are asked for afterwards: result.summary(ddf='kenward-roger')",
        "disp": "nothing is printed; the result tells whether it is converged",
        "full_output": "the result has all of it: converged, n_evaluations, gradient_norm, message",
        "do_cg": "the optimiser is chosen by method=",
    },
    "fit_many": {"data": "the responses are called Y, (n_responses, n_obs)", "y": "the responses are called Y"},
    "predict": {
        "re_form": _EFFECTS,
        "re_formula": _EFFECTS,
        "coverage": _LEVEL,
        "alpha": _LEVEL,
        "newdata": "the new rows are called data",
        "new_data": "the new rows are called data",
        "exog": "the new rows are called data",
        "allow_new_levels": "groups that the fit has not seen are allowed by new_levels='population'",
        "se_fit": "standard errors come with interval='confidence'",
        "type": "predictions are on the scale of the response",
    },
    "conf_int": {
        "alpha": _LEVEL,
        "cols": "the limits of all coefficients come labelled; choose among them",
        "parm": "the limits of all coefficients come labelled; choose among them",
    },
    "summary": {
        "alpha": _LEVEL,
        "digits": "the digits follow from the standard errors; tidy() has the numbers",
        "stars": "p-values are printed, no stars",
        "yname": "names are those of the formula",
        "xname_fe": "names are those of the formula",
    },
    "test": {"r_matrix": "it is the first argument, hypothesis", "L": "it is the first argument, hypothesis"},
    "anova": {"test": "the tests are F tests; likelihood ratios are for flc.compare", "typ": "it is called type"},
    "emmeans": {
        "specs": "it is the first argument, factors",
        "pairwise": "pairwise comparisons are contrasts='pairwise'",
        "method": "contrasts are asked for by contrasts=, adjustments by adjust=",
        "type": "it is called transform",
        "interaction": "give contrasts a mapping of factors to comparisons",
        "lmer_df": "it is called ddf",
        "alpha": _LEVEL,
    },
    "influence": {"group": "units of deletion are called by: 'group', 'observation' or a grouping factor"},
    "simulate": {
        "use_u": "effects of the fit are kept by result.bootstrap(n, 'conditional')",
        "nsim": _DRAWS, "n_sim": _DRAWS, "nrep": _DRAWS, "size": _DRAWS,
    },
    "bootstrap": {
        "nsim": _DRAWS, "n_sim": _DRAWS, "R": _DRAWS, "n_boot": _DRAWS, "n_reps": _DRAWS, "B": _DRAWS,
        "FUN": "a statistic of your own is called statistic", "func": "a statistic of your own is called statistic",
        "type": "it is called kind",
    },
    "residuals": {"type": "it is called kind"},
    "random_effect_test": {"nsim": "it is called n_sim"},
    "drop1": {"scope": "it is the first argument, term", "ddf": "write test='kenward-roger'"},
    "power": {"nsim": "it is called n_sim", "level": "the level of the test is called alpha"},
}  # fmt: skip

_PAIRS = "all pairs, with Tukey's adjustment, are contrasts='pairwise'"
_CONTROL = "comparisons with one level, as Dunnett's, are contrasts='reference'"
_BOTH = "restricted maximum likelihood is fit(reml=True), maximum likelihood fit(reml=False)"
_CONDITIONAL = "these are kind='conditional'"
_LIMITS = "bootstrap intervals are result.bootstrap(n).conf_int()"
_GROUPS = "those of the groups are added by effects='all'"
_NORMAL = "z tests are ddf='normal'"

OPTIONS: dict[str, dict[str, str]] = {
    "ddf": {
        "kr": "that is 'kenward-roger'", "kenward": "that is 'kenward-roger'", "lme4": _NORMAL, "z": _NORMAL,
        "asymptotic": _NORMAL, "inf": _NORMAL, "wald": _NORMAL, "t": "that is 'residual'",
        "bw": "that is 'between-within'", "betwithin": "that is 'between-within'",
    },
    "contrasts": {
        "tukey": _PAIRS, "pairs": _PAIRS, "all": _PAIRS, "trt.vs.ctrl": _CONTROL, "trt.vs.ctrl1": _CONTROL,
        "trt.vs.ctrlk": _CONTROL, "dunnett": _CONTROL, "treatment": _CONTROL, "consec": "that is 'sequential'",
        "poly": "that is 'polynomial'", "eff": "that is 'effects'",
    },
    "adjust": {"bonf": "that is 'bonferroni'", "tukeyhsd": "that is 'tukey'", "fdr_bh": "that is 'fdr'"},
    "kind of residuals": {
        "response": _CONDITIONAL, "deviance": _CONDITIONAL, "working": _CONDITIONAL, "raw": _CONDITIONAL,
        "normalized": "nlme's normalized residuals are kind='whitened'", "scaled": "that is 'pearson'",
        "standardized": "that is 'pearson'", "population": "that is 'marginal'", "fixed": "that is 'marginal'",
    },
    "kind of bootstrap": {
        "semiparametric": "that is 'residual'", "nonparametric": "that is 'cases'", "case": "that is 'cases'",
        "wild": "robust standard errors are result.tidy(vcov='CR2')",
    },
    "method of intervals": {"boot": _LIMITS, "bootstrap": _LIMITS, "parametric": _LIMITS},
    "method of fit": {"reml": _BOTH, "ml": _BOTH, "mle": _BOTH, "lme": _BOTH, "exact": _BOTH},
    "effects": {
        "subject": _GROUPS, "random": _GROUPS, "conditional": _GROUPS, "group": _GROUPS,
        "fixed": "that is 'population'", "marginal": "that is 'population'", "none": "that is 'population'",
    },
    "interval": {"true": "limits of the mean are interval='confidence'", "both": "ask for one of them at a time"},
}  # fmt: skip
"""Values of options that others know, by the option, in lower case."""

TABLES: dict[str, str] = {
    "str": "give scan(path), or read the file first, e.g. pandas.read_csv(path)",
    "PosixPath": "give scan(path), or read the file first, e.g. pandas.read_csv(path)",
    "WindowsPath": "give scan(path), or read the file first, e.g. pandas.read_csv(path)",
    "DataFrameGroupBy": "give the table itself: the groups stand in the formula, (1 | g)",
    "GroupBy": "give the table itself: the groups stand in the formula, (1 | g)",
    "Series": "a table has named columns: .to_frame()",
    "list": "make it a table, e.g. pandas.DataFrame(data)",
    "recarray": "make it a table, e.g. pandas.DataFrame(data)",
    "ndarray": "arrays without names are for LinearMixedModel(y, X, Z, groups)",
    "Dataset": "call .to_dataframe() on it first",
}
"""What to do with things that are no tables, by the name of their type."""

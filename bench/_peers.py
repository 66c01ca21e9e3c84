"""Adapters: the same model given to each rival in its own words, its answer turned into lme4's convention.

A rival that is not installed in this environment is reported as such; none is ever needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from _harness import Answer, Case, RCase, RSession, answer_of
from _problems import Arrays


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _statsmodels_like(result: Any) -> Answer:
    return Answer(-2.0 * float(result.llf), np.asarray(result.fe_params, float), converged=bool(result.converged))


def _mixedlm(formula: str, frame: pd.DataFrame) -> Case:
    import mixedlm

    return Case(
        "mixedlm",
        lambda: mixedlm.lmer(formula, frame),
        lambda r: Answer(float(r.REMLcrit()), np.array(list(r.fixef().values()), float), converged=r.converged),
    )


# ----------------------------------------------------------------------------------------------------- from arrays


def fastlmm_arrays(data: Arrays, name: str = "fastlmm_core", n_jobs: int = 1) -> Case:
    import fastlmm_core as flc

    def fit() -> object:
        return flc.LinearMixedModel(data.y, data.x, data.z, data.codes, n_jobs=n_jobs).fit(reml=True, n_jobs=n_jobs)

    return Case(name, fit, answer_of)


def array_peers(data: Arrays, skip: tuple[str, ...] = ()) -> tuple[list[Case], list[str]]:
    """Cases of the rivals that take arrays, and the names of those not installed."""
    cases, missing = [], []
    if "statsmodels" not in skip:
        if installed("statsmodels"):
            from statsmodels.regression.mixed_linear_model import MixedLM

            cases.append(
                Case(
                    "statsmodels",
                    lambda: MixedLM(data.y, data.x, data.codes, exog_re=data.z).fit(reml=True),
                    _statsmodels_like,
                )
            )
        else:
            missing.append("statsmodels")
    if "mixedlm-rs" not in skip:
        if installed("mixedlm_rs"):
            import mixedlm_rs

            def run(**method: str) -> Any:
                return mixedlm_rs.MixedLM(data.y, data.x, data.codes, exog_re=data.z).fit(reml=True, **method)

            cases.append(Case("mixedlm-rs", run, _statsmodels_like))
            cases.append(Case("mixedlm-rs, method='rust'", lambda: run(method="rust"), _statsmodels_like))
        else:
            missing.append("mixedlm-rs")
    return cases, missing


# --------------------------------------------------------------------------------------------------- from a formula


def fastlmm_formula(formula: str, frame: Any, name: str = "fastlmm_core") -> Case:
    import fastlmm_core as flc

    return Case(name, lambda: flc.lmm(formula, frame).fit(reml=True), answer_of)


def formula_peers(
    frame: pd.DataFrame, response: str, time: str, group: str, only: tuple[str, ...] | None = None
) -> tuple[list[Case], list[str]]:
    """Cases of the rivals for `response ~ time + (time | group)`, and the names of those not installed."""
    fixed, slope = f"{response} ~ {time}", f"({time} | {group})"

    def statsmodels() -> Case:
        from statsmodels.formula.api import mixedlm

        return Case(
            "statsmodels",
            lambda: mixedlm(fixed, frame, groups=group, re_formula=f"~ {time}").fit(reml=True),
            _statsmodels_like,
        )

    def mixedlm_rs() -> Case:
        import mixedlm_rs

        return Case(
            "mixedlm-rs",
            lambda: mixedlm_rs.mixedlm(fixed, frame, groups=group, re_formula=f"~ {time}").fit(reml=True),
            _statsmodels_like,
        )

    def lme_python() -> Case:
        import lme_python
        import polars

        own_frame = polars.from_pandas(frame)
        return Case(
            "lme-python",
            lambda: lme_python.lmer(f"{fixed} + {slope}", data=own_frame, reml=True),
            lambda r: Answer(float(r.reml_criterion), np.array(r.coefficients, float), converged=r.converged),
        )

    def interlace() -> Case:
        import interlace

        return Case(
            "interlace",
            lambda: interlace.fit(fixed, data=frame, random=[f"(1 + {time} | {group})"]),
            _statsmodels_like,
        )

    makers: dict[str, tuple[str, Callable[[], Case]]] = {
        "statsmodels": ("statsmodels", statsmodels),
        "mixedlm-rs": ("mixedlm_rs", mixedlm_rs),
        "mixedlm": ("mixedlm", lambda: _mixedlm(f"{fixed} + {slope}", frame)),
        "lme-python": ("lme_python", lme_python),
        "interlace": ("interlace", interlace),
    }
    cases, missing = [], []
    for name, (module, make) in makers.items():
        if only is not None and name not in only:
            continue
        if installed(module):
            cases.append(make())
        else:
            missing.append(name)
    return cases, missing


# ---------------------------------------------------------------------------------------- several grouping factors


def crossed_ml_peers(
    y: np.ndarray, x: np.ndarray, codes: np.ndarray, criterion: Callable[[np.ndarray, np.ndarray, float], float]
) -> tuple[list[Case], list[str]]:
    """Cases of the rivals that fit random intercepts by ML from arrays, and the names of those not installed.

    The factors are the columns of `codes`.  `criterion` gives -2 log-likelihood at fixed effects, variances of the
    factors and of the residual: gpboost's own is a stochastic approximation, so its estimates are judged by this one.
    """
    if not installed("gpboost"):
        return [], ["gpboost"]
    import gpboost

    def run() -> Any:
        model = gpboost.GPModel(group_data=codes, likelihood="gaussian")
        model.fit(y=y, X=x)
        return model

    def answer(model: Any) -> Answer:
        residual, *variances = np.ravel(model.get_cov_pars(format_pandas=False))
        beta = np.ravel(model.get_coef(format_pandas=False))
        return Answer(criterion(beta, np.array(variances), float(residual)), beta)

    return [Case(f"gpboost, threads {gpboost.get_default_num_threads()}", run, answer)], []


def crossed_formula_peers(formula: str, frame: pd.DataFrame) -> tuple[list[Case], list[str]]:
    """Cases of the rivals that fit crossed factors of this size by REML from a formula, and those not installed."""
    return ([_mixedlm(formula, frame)], []) if installed("mixedlm") else ([], ["mixedlm"])


# ------------------------------------------------------------------------------------------------------------ lme4


def send_frame(session: RSession, frame: pd.DataFrame, group: str, name: str = "d") -> None:
    """Copy a frame to R; labels that are not integers become a character column with as many distinct values."""
    columns = []
    for column in frame.columns:
        values = frame[column]
        is_text = not pd.api.types.is_numeric_dtype(values)
        numbers = pd.factorize(values)[0] if is_text else values.to_numpy()
        session.assign(f"{name}_{column}", numbers)
        columns.append(f'{column} = sprintf("s%d", {name}_{column})' if is_text else f"{column} = {name}_{column}")
    session.eval(f"{{{name} <- data.frame({', '.join(columns)}); NULL}}")
    assert group in frame.columns


def lmer_case(session: RSession, formula: str, name: str = "lme4::lmer", data: str = "d") -> RCase:
    return RCase(name, session, f"function() lmer({formula}, {data})")


def lmer_from_matrices_case(
    session: RSession, formula: str, name: str = "lme4 from matrices", data: str = "d"
) -> RCase:
    """lme4 with the formula already parsed and the matrices built: what is left is deviance function and optimiser."""
    session.eval(f"{{lf_{data} <- lFormula({formula}, {data}); NULL}}")
    return RCase(
        name,
        session,
        f"function() {{ lf <- lf_{data}; devfun <- do.call(mkLmerDevfun, lf); opt <- optimizeLmer(devfun); "
        "mkMerMod(environment(devfun), opt, lf$reTrms, fr = lf$fr) }",
    )

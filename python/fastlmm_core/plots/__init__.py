"""Plots of models and fits, by matplotlib (the extra ``plot``), which is imported when something is drawn.

Every function takes what it draws and, where it draws one plot, ``ax=None``; it returns the axes.  Colours are those
of Okabe and Ito (2008), which people with colour-blindness tell apart; line styles and markers differ as well, so that
plots can be printed in grey.  Where there are thousands of groups, a sample or a summary is drawn, and the plot says
so.

overview          four plots of a fit
predictions       what a model says: curves and means with bands
estimates         marginal means with comparison arrows, coefficients of several models
trajectories      data, population line and lines of the groups
random_effects    caterpillars and shrinkage
residuals         panels and quantiles
covariance        variance along a variable, patterns of missing occasions
visits            covariance of structured residuals
inference         profiles, bootstrap distributions, power, influence
"""

from __future__ import annotations

from .covariance import marginal_variance, missingness
from .estimates import coefficients, emmeans
from .inference import bootstrap_density, influence_plot, power_curve, profile_zeta
from .overview import overview
from .predictions import effects
from .random_effects import caterpillar, shrinkage
from .residuals import qq, residual_panels
from .trajectories import trajectories
from .visits import residual_covariance

__all__ = [
    "bootstrap_density",
    "caterpillar",
    "coefficients",
    "effects",
    "emmeans",
    "influence_plot",
    "marginal_variance",
    "missingness",
    "overview",
    "power_curve",
    "profile_zeta",
    "qq",
    "residual_covariance",
    "residual_panels",
    "shrinkage",
    "trajectories",
]

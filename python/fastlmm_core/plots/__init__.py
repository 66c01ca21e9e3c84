"""Plots of models and fits, by matplotlib (the extra ``plot``), which is imported when something is drawn.

Every function takes what it draws and, where it draws one plot, ``ax=None``; it returns the axes.  Colours are those
of Okabe and Ito (2008), which people with colour-blindness tell apart; line styles and markers differ as well, so that
plots can be printed in grey.  Where there are thousands of groups, a sample or a summary is drawn, and the plot says
so.
"""

from __future__ import annotations

from .covariance import marginal_variance, missingness
from .effects import caterpillar, shrinkage
from .inference import bootstrap_density, influence_plot, power_curve, profile_zeta
from .residuals import qq, residual_panels
from .trajectories import trajectories

__all__ = [
    "bootstrap_density",
    "caterpillar",
    "influence_plot",
    "marginal_variance",
    "missingness",
    "power_curve",
    "profile_zeta",
    "qq",
    "residual_panels",
    "shrinkage",
    "trajectories",
]

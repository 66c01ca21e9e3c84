"""Profile likelihood.

profile        intervals of all parameters
coefficients   profiles of fixed effects, point by point
points         those of variance parameters
coordinates    the deviance with sigma free, expanded in the coordinates of a chart
charts         coordinates of which the first is sigma, a standard deviation or a correlation
structured     profiles of structured residuals and restricted covariances
reported       the parameters of structures as functions of coordinates without constraints
"""

"""Profile likelihood.

profile       intervals of all parameters
points        one profile, point by point
coordinates   the criterion with beta and sigma free
structured    profiles of structured residuals and restricted covariances
reported      the parameters of structures as functions of coordinates without constraints
"""

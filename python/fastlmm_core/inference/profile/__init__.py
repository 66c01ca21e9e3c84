"""Profile likelihood.

profile       intervals of all parameters
points        one profile, point by point
coordinates   the criterion with beta and sigma free
"""

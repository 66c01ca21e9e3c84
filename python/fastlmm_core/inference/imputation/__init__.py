"""Fits of imputed data sets.

rubin   Rubin's rules and their degrees of freedom
pool    coefficients and tests of them
means   marginal means, slopes and contrasts
"""

"""The covariance of the rows of a subject, R = sigma^2 R~(phi): one small file for each structure.

structure             what an engine asks of one
catalogue             all of them by name
scaled                standard deviations times correlations
deviations            one standard deviation, or one for each position
correlation           what correlations share
links                 from the line to correlations and ranges
unstructured          us
relative              us in coordinates about a member
entries               natural parameters that are entries of the matrix
independent           id, diag
compound_symmetry     cs, csh
autoregressive        ar1, ar1h
antedependence        ad, adh
toeplitz              toep, toeph
distances             what structures of one range share
exponential           car1, sp_exp, sp_power, sp_gau
matern                matern (3/2), matern52
rational, spherical   ratio, spher
nugget                nugget=True
moving_average        arma
factor_analytic       fa
kronecker             us@cs, us@ar1: several responses over visits
products              derivatives of standard deviations times a matrix
variance_function     what standard deviations by covariates share
varied                a variance function times a structure
log_linear            variance="~ formula"
power_variance        power, exp
constant_power        constpower
constant_proportion   constprop
grouped_variance      a function for each level
steps, markov         long series of Markov chains, whitened row by row
moments               moments of residuals, for start values
natural               derivatives of R in the natural parameters
"""

"""Comparison of models by likelihood.

compare              several models side by side
table                what comparisons return
nesting              which model lies within which
residuals            which residual structure is part of which
restricted           the same of restricted covariances of random effects
null_distributions   chi-bar-square mixtures
exact                exact distribution for one variance
random_effects       tests of random effects
many                 tests of many responses
own_designs          the same of fits of which each has a design of its own
drop1                tests of fixed terms
f_tests              F tests of nested fixed parts
selection            backward elimination
"""

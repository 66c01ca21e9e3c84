"""Predictions.

predict         means and intervals for old and new rows
gaps            rows of new data with missing values
new_rows        rows of X and Z of new data
given_data      which groups of new rows are known, and what is known of them
one_factor      the effects of one factor given the data
conditional     the effects of several factors given the data
structured      what observed rows tell of new ones, where residuals have a structure
structured_rows   what callers give and get there
effect_errors   errors of predicted random effects
kept_effects    random effects of a fit or given ones, on any rows
along           predictions along one variable for each group
other_rows      a model on other rows than those it was made of
"""

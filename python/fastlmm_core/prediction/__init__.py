"""Predictions.

predict    means and intervals for old and new rows
one_factor     the effects of one factor given the data
effect_errors  errors of predicted random effects
new_rows   rows of X and Z of new data
"""

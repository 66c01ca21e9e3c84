"""Predictions.

predict    means and intervals for old and new rows
effect_errors  errors of predicted random effects
new_rows   rows of X and Z of new data
"""

"""Predictions.

predict    means and intervals for old and new rows
new_rows   rows of X and Z of new data
"""

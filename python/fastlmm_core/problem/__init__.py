"""Rows to well-conditioned columns, shared by all engines.

columns          scales, shifts and checks of columns
aliasing         random effects that the fixed effects explain
identification   covariance parameters that no data on a design tell apart
"""

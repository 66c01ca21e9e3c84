"""Draws from a fit.

draws        streams, draws of responses, refits of them
bootstrap    parametric, conditional, residual and by cases
resampling   refits of resampled groups
structured   the same with structured residuals
intervals    limits from replicates
"""

"""Draws from a fit.

draws        streams, draws of responses, refits of them
dropout      which responses of a draw are observed
shapes       distributions of effects and errors
scores       draws of what a fit sees of its responses
nested       the same as a smaller model sees it
sums         draws of scores where rows are not held
bootstrap    parametric, conditional, residual and by cases
replicates   what it returns: standard errors, bias, intervals
resampling   refits of resampled groups
structured   the same with structured residuals
intervals    limits from replicates
"""

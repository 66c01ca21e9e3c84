"""Whether the model describes the data.

assumptions            residual tests, outlying groups
autocorrelation        of whitened residuals, by lag
leverage               leverage of each row
studentized            studentised residuals
influence              deletion diagnostics
deleted_effects        random effects and fitted values of deleted fits
augment                the rows of the data with what the fit says of each
pooling                coefficients of groups, and their shrinkage
design_effect          design effects and effective sample sizes
group_sums             rows of Z and X, and their sums over groups
principal_components   directions of the random effects
marginal               covariance and correlation over time
conditional_aic        AIC of predictions for the same groups
explained              R^2 of terms, and intervals
context                whether a covariate acts alike within and between groups
residuals              residuals by kind
within_groups          least-squares residuals within groups
"""

"""Whether the model describes the data.

assumptions   residual tests, autocorrelation
leverage      leverage, studentised residuals
influence     deletion diagnostics
pooling       shrinkage and design effects
marginal      covariance and correlation over time
"""

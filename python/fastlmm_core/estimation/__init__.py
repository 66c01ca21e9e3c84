"""From a problem to a fit.

optimize        the compiled Newton method through scipy, certificates, further starts
residual_limit  fits whose residual variance runs to zero
whitening       covariances of rows, and rows made independent
many            many responses on one design
deletion        refits without groups or rows
"""

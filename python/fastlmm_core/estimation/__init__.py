"""From a problem to a fit.

optimize        the compiled Newton method through scipy, certificates, further starts
structured      minimise in parameters without constraints, and certify
restricted      random effects whose covariances are functions of fewer parameters
residual_limit  fits whose residual variance runs to zero
whitening       covariances of rows, and rows made independent
many            many responses on one design
deletion        refits without groups or rows
"""

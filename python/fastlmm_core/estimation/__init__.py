"""From a problem to a fit.

optimize        the compiled Newton method through scipy, certificates, further starts
structured      minimise in parameters without constraints, and certify
restricted      random effects whose covariances are functions of fewer parameters
residual_limit  fits whose residual variance runs to zero
likelihood      at the parameters of a fit, whatever they are
stated          fits at parameters that are given; statements, as callers give them
restored        fits at estimates that were found before
whitening       covariances of rows, and rows made independent
many            many responses on one design
deletion        refits without groups or rows
"""

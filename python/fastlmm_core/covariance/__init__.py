"""Covariance structures: parameters to matrices and back.

parameters   full and diagonal blocks, chain rules, directions of vech(G)
elements     names and order of the parameters of G
directions   directions of G that are free
residual     structures of the rows of a subject
effects      structures of random effects
principal    principal components of a covariance matrix
"""

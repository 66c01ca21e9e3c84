"""Covariance structures: parameters to matrices and back.

parameters   full and diagonal blocks, chain rules, directions of vech(G)
"""

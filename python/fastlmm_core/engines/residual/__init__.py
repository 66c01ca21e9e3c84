"""Engines for V_i = Z_i G Z_i' + R_i(phi) with structured residuals.

problem        a design with structured residuals, conditioned
patterns       subjects by their pattern of visits
criterion      what both criteria share
visits         the criterion over visits, without random effects
effects        what criteria with random effects share
series         the criterion of Markov chains, whitened row by row
clusters       the criterion in general, each cluster with its covariance matrix in full
"""

"""Engines for V_i = Z_i G Z_i' + R_i(phi) with structured residuals.

problem        a design with structured residuals, conditioned
patterns       subjects by their pattern of visits
visits         the criterion over visits, without random effects
"""

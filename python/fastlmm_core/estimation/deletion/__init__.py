"""Refits without some of the groups or rows.

contributions   what each group adds to the cross-products
polynomials     expansion around the optimum
groups          deletion of groups
rows            deletion of rows
"""

"""Marginal means and what is made of them.

grid              the reference grid
cells             rows in each combination of levels
means             means and slopes
contrasts         weights of contrasts
joint_tests       joint tests
response          means on the scale of the response
letters           compact letters
equivalence       equivalence tests
multiplicity      adjusted p-values and limits
largest           largest of correlated t statistics
scale             quadrature over the scale
conditions        what is averaged over, and where covariates stand
families          estimates in families and their adjustment
"""

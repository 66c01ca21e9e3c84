"""Several factors in any arrangement.

problem            arrays to a conditioned problem
order              order of elimination
start              where the search starts: second moments
cores              what is left of crossed factors, sparse and dense
engine             the criterion by block elimination
posterior_root     root of the posterior covariance
sparse_cholesky    Cholesky factors of sparse matrices
"""

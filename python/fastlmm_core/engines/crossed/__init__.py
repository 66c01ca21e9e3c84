"""Several factors in any arrangement.

problem            arrays to a conditioned problem
order              order of elimination
balance            which data have one minimum only
start              where the search starts: second moments
cores              what is left of crossed factors, sparse and dense
directions         what follows from scores and products, whoever makes them
engine             the criterion by block elimination
systems            solutions by conjugate gradients, and traces by random probes
iterative          the criterion by conjugate gradients and random probes
posterior_root     root of the posterior covariance
sparse_cholesky    Cholesky factors of sparse matrices
"""

# From theta to what an engine knows of it, and back: G^_o = F F', F = B L(theta).
#
# gives  Chain, Gls, chain_factor; the formulas are in chain.pxi and gls.pxi, for vectors and for numbers

# How G^_o depends on theta.
cdef struct Chain:
    Py_ssize_t q, n_par, n_free
    const Py_ssize_t* row       # (n_par,) free elements of L
    const Py_ssize_t* col
    const Py_ssize_t* free_row  # (n_free,) unit directions of G^_o that theta reaches, row >= column; NULL: all,
                                # by rows
    const Py_ssize_t* free_col
    const double* basis         # B (q, q), NULL for the identity
    const double* axes          # B (q, q) of each lane, in vectors, in its place; or NULL

# Generalized least squares of y on X from H = [X y]'V^-1[X y].  Pointers are to vectors but for `before`.
cdef struct Gls:
    Py_ssize_t k                # columns of [X y]: p + 1
    bint reml
    double* nu                  # n or n - p
    const double* before        # (k,) numbers: diagonal of [X y]'[X y], of which H is what remains; NULL: H itself
    double* H                   # packed lower triangle by rows
    double* logdet              # log|V|
    double* chol                # Cholesky factor of H (k, k)
    double* inverse             # inverse of that of H_xx (k, k; p x p used)
    double* b                   # (-beta, 1)
    double* weight              # w (k, k): 2 M = w w', M = (nu / r^2) b b' [+ K]
    double* r2
    double* value               # the criterion, infinite where H is not positive definite
    double* noise               # rounding error expected in value


cdef inline void chain_factor(const Chain* c, const double* theta, double* F) noexcept nogil:
    """F = B L(theta), (q, q)."""
    cdef Py_ssize_t i, j, q = c.q
    for i in range(q * q):
        F[i] = 0.0
    for i in range(c.n_par):
        if c.basis == NULL:
            F[c.row[i] * q + c.col[i]] = theta[i]
        else:
            for j in range(q):
                F[j * q + c.col[i]] += c.basis[j * q + c.row[i]] * theta[i]

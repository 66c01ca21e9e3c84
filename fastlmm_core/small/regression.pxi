# Regression on cross-products.

cdef void regress_on(Py_ssize_t p, const double* packed, const double* before, double n, double* work, Regression* out
                     ) noexcept nogil:
    """`least_squares` on columns whose triangle is known; work: p^2 + p doubles."""
    cdef Py_ssize_t k = p + 1, i, j, last = p * k // 2
    cdef double t
    cdef double* S = work
    cdef double* change = work + p * p
    cdef double* T = out.T
    cdef double* xy = out.xy
    for i in range(p):
        change[i] = 0.0
        for j in range(i + 1):
            S[i * p + j] = packed[i * (i + 1) // 2 + j]
            S[j * p + i] = S[i * p + j]
    for j in range(p):
        t = 0.0
        for i in range(j + 1):
            t += T[i * p + j] * packed[last + i]
        for i in range(j + 1):
            change[i] += T[i * p + j] * t
    out.rest = packed[last + p]
    out.total = out.rest
    for i in range(p):
        t = -2.0 * packed[last + i]
        for j in range(p):
            t += S[i * p + j] * change[j]
        out.rest += change[i] * t
        t = 0.0
        for j in range(p):
            t += S[i * p + j] * before[j]
        out.total += before[i] * t
    out.scale = sqrt(out.rest / n)
    for i in range(p):
        for j in range(p):
            xy[i * k + j] = T[i * p + j]
        xy[i * k + p] = -change[i] / out.scale
        xy[p * k + i] = 0.0
        out.beta[i] = before[i] + change[i]
    xy[p * k + p] = 1.0 / out.scale


cdef void regress(Py_ssize_t p, const double* packed, const double* before, double n, double* work, Regression* out
                  ) noexcept nogil:
    """`least_squares`; work: 2 p^2 + p doubles."""
    cdef Py_ssize_t i, j
    for i in range(p):
        for j in range(i + 1):
            work[i * p + j] = packed[i * (i + 1) // 2 + j]
            work[j * p + i] = work[i * p + j]
    out.margin = triangle(p, work, p, 1, work + p * p, out.T) if p > 0 else 1.0
    regress_on(p, packed, before, n, work, out)


def least_squares(const double[::1] packed, const double[::1] before, Py_ssize_t n):
    """Orthonormal columns of X and the regression of y on them, from their cross-products.

    Parameters
    ----------
    packed : (k(k+1)/2,) array
        Cross-products of the columns [X r], lower triangle by rows, r = y - X before.
    before : (k - 1,) array
        Coefficients already removed from y.
    n : int
        Rows.

    Returns
    -------
    T : (k - 1, k - 1) upper triangular array
        (X T)'(X T) = I; the identity where X'X is not positive definite.
    margin : float
        Smallest 1 - R^2 of a column on those before it; 0 where X'X is not positive definite.
    xy : (k, k) upper triangular array
        [X r] xy is [X T, residual / scale]; not finite where the scale is zero.
    beta : (k - 1,) array
        Coefficients, with those removed before.
    rest : float
        Residual sum of squares, as the quadratic form at beta.
    total : float
        Sum of squares of r and of X before.
    scale : float
        sqrt(rest / n), NaN where rounding errors make that negative.
    """
    cdef Py_ssize_t p = before.shape[0], k = p + 1
    t_array = np.empty((p, p))
    xy_array = np.empty((k, k))
    beta_array = np.empty(p)
    cdef double[:, ::1] T = t_array, xy = xy_array
    cdef double[::1] beta = beta_array
    cdef double* work = doubles(2 * p * p + p)
    cdef Regression out
    out.T = &T[0, 0] if p > 0 else NULL
    out.beta = &beta[0] if p > 0 else NULL
    out.xy = &xy[0, 0]
    if p >= MANY_:
        t_array[...], out.margin = by_blas().triangle(unpack(packed[:p * k // 2], p))
        regress_on(p, &packed[0], &before[0], <double> n, work, &out)
    else:
        regress(p, &packed[0], &before[0] if p > 0 else NULL, <double> n, work, &out)
    free(work)
    return t_array, out.margin, xy_array, beta_array, out.rest, out.total, out.scale

# What varies within groups: its cross-products, regression on them, and what is only rounding.

cdef void within_products(Py_ssize_t k, const double* packed, const double* T, const double* between, double* half,
                          double* out) noexcept nogil:
    """`within_part`; half: work space (k, k)."""
    cdef Py_ssize_t i, j, l, pos = 0
    cdef double t
    for i in range(k):
        for j in range(k):
            t = 0.0
            for l in range(j + 1):
                t += packed[i * (i + 1) // 2 + l if i >= l else l * (l + 1) // 2 + i] * T[l * k + j]
            half[i * k + j] = t
    for i in range(k):
        for j in range(i + 1):
            t = 0.0
            for l in range(i + 1):
                t += T[l * k + i] * half[l * k + j]
            out[pos] = t - between[pos]
            pos += 1


def within_part(const double[::1] packed, const double[:, ::1] T, const double[::1] between):
    """T'S T less `between`, packed by rows like S; T is upper triangular."""
    cdef Py_ssize_t k = T.shape[0]
    if k >= MANY_:
        return by_blas().within_part(unpack(packed, k), np.asarray(T), np.asarray(between))
    out_array = np.empty(k * (k + 1) // 2)
    cdef double[::1] out = out_array
    cdef double* half = doubles(k * k)
    within_products(k, &packed[0], &T[0, 0], &between[0], half, &out[0])
    free(half)
    return out_array


def within_regression(const double[::1] packed, Py_ssize_t k, double exact):
    """Regression of the last column of [X y] on the others within groups.

    Parameters
    ----------
    packed : (k(k+1)/2,) array
        Cross-products within groups, lower triangle by rows.
    exact : float
        Columns whose diagonal (or pivot) is at most this are left out.

    Returns
    -------
    slope : (k - 1,) array
    unexplained : float
        Sum of squares that it leaves.
    """
    found = by_blas().regression(unpack(packed, k), exact) if k >= MANY_ else None
    if found is not None:
        return found
    slope_array = np.zeros(max(k - 1, 1))
    cdef double[::1] slope = slope_array
    cdef double* L = doubles(k * k)
    cdef double unexplained = regress_within(k, &packed[0], exact, L, &slope[0])
    free(L)
    return slope_array[:k - 1], unexplained


cdef double regress_within(Py_ssize_t k, const double* packed, double exact, double* L, double* slope) noexcept nogil:
    """`within_regression`; L: work space (k, k)."""
    cdef Py_ssize_t p = k - 1, i, j, l
    cdef double t
    for i in range(k):
        for j in range(i + 1):
            t = packed[i * (i + 1) // 2 + j]
            for l in range(j):
                t -= L[i * k + l] * L[j * k + l]
            if j < i:
                L[i * k + j] = t / L[j * k + j] if L[j * k + j] > 0.0 else 0.0
            elif i < p:
                L[i * k + i] = sqrt(t) if t > exact else 0.0
            else:
                L[p * k + p] = t
    for i in range(p - 1, -1, -1):
        t = L[p * k + i]
        for l in range(i + 1, p):
            t -= L[l * k + i] * slope[l]
        slope[i] = t / L[i * k + i] if L[i * k + i] > 0.0 else 0.0
    return L[p * k + p]


def clear_exact(double[::1] packed, Py_ssize_t k, double last, double exact):
    """Set rows and columns to zero whose diagonal is at most `exact` (times `last` for the last): in place.

    Returns
    -------
    bool
        Whether the last one is among them.
    """
    return drop_exact(&packed[0], k, last, exact)


cdef bint drop_exact(double* packed, Py_ssize_t k, double last, double exact) noexcept nogil:
    """`clear_exact`."""
    cdef Py_ssize_t i, j
    cdef bint found = False
    for i in range(k):
        if packed[i * (i + 1) // 2 + i] <= exact * (last if i == k - 1 else 1.0):
            found = i == k - 1
            for j in range(k):
                packed[i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i] = 0.0
    return found

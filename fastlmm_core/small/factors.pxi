# Factors of covariance matrices: orthogonal columns, lower triangles, and such that no variance is below a floor.

cdef void orthogonalise(Py_ssize_t m, Py_ssize_t n, double* A) noexcept nogil:
    """One-sided Jacobi rotations of the columns of A (m, n) until they are orthogonal."""
    cdef Py_ssize_t sweep, i, j, l
    cdef double a, b, c, zeta, t, cs, sn, x
    cdef bint rotated
    for sweep in range(60):
        rotated = False
        for i in range(n):
            for j in range(i + 1, n):
                a = 0.0
                b = 0.0
                c = 0.0
                for l in range(m):
                    a += A[l * n + i] * A[l * n + i]
                    b += A[l * n + j] * A[l * n + j]
                    c += A[l * n + i] * A[l * n + j]
                if fabs(c) <= 1e-16 * sqrt(a * b) or c == 0.0:
                    continue
                rotated = True
                zeta = (b - a) / (2.0 * c)
                t = 1.0 / (fabs(zeta) + sqrt(1.0 + zeta * zeta))
                if zeta < 0.0:
                    t = -t
                cs = 1.0 / sqrt(1.0 + t * t)
                sn = cs * t
                for l in range(m):
                    x = A[l * n + i]
                    A[l * n + i] = cs * x - sn * A[l * n + j]
                    A[l * n + j] = sn * x + cs * A[l * n + j]
        if not rotated:
            break


def orthogonal_columns(const double[:, :] F):
    """F V with orthogonal columns for some orthogonal V: left singular vectors times singular values.

    One-sided Jacobi: small singular values keep their relative accuracy.
    """
    out_array = np.array(F, dtype=float, order="C")
    cdef double[:, ::1] A = out_array
    if A.shape[0] > 0 and A.shape[1] > 0:
        orthogonalise(A.shape[0], A.shape[1], &A[0, 0])
    return out_array


def smallest_parts(theta, flat, Py_ssize_t q):
    """Lambda of a point, and how near to singular it is.

    Parameters
    ----------
    theta : (n_par,) array
        Elements of Lambda.
    flat : (n_par,) intp array
        Their places in the matrix written row by row; other elements are zero.
    q : int

    Returns
    -------
    factor : (q, q) array
    least, lowest : float
        Square of the smallest singular value (as by `orthogonal_columns`), and the smallest diagonal element; NaN where
        theta is not finite.
    """
    cdef Py_ssize_t i, j
    cdef double size, least = INFINITY, lowest = INFINITY
    cdef const double* elements = <const double*> place(theta)
    cdef const Py_ssize_t* position = <const Py_ssize_t*> place(flat)
    cdef double* A = doubles(q * q)
    out = np.zeros((q, q))
    cdef double* F = <double*> place(out)
    for i in range(len(flat)):
        F[position[i]] = elements[i]
    memcpy(A, F, q * q * sizeof(double))
    for i in range(q):
        if not F[i * (q + 1)] >= lowest:
            lowest = F[i * (q + 1)]
    orthogonalise(q, q, A)
    for j in range(q):
        size = 0.0
        for i in range(q):
            size += A[i * q + j] * A[i * q + j]
        # NaN stays
        if least == least and not size >= least:
            least = size
    free(A)
    return out, least, lowest


cdef void lower(Py_ssize_t q, Py_ssize_t r, double* A, double* L) noexcept nogil:
    """`lower_factor` of A (q, r), which is overwritten."""
    cdef Py_ssize_t i, j, l, c = 0
    cdef double h, cosine, sine, x
    memset(L, 0, q * q * sizeof(double))
    # column c holds what is left of the columns; a row without a pivot leaves its column of L zero
    for i in range(q):
        if c == r:
            break
        for j in range(c + 1, r):
            if A[i * r + j] == 0.0:
                continue
            h = sqrt(A[i * r + c] * A[i * r + c] + A[i * r + j] * A[i * r + j])
            cosine = A[i * r + c] / h
            sine = A[i * r + j] / h
            for l in range(i, q):
                x = A[l * r + c]
                A[l * r + c] = cosine * x + sine * A[l * r + j]
                A[l * r + j] = cosine * A[l * r + j] - sine * x
        if A[i * r + c] == 0.0:
            continue
        x = -1.0 if A[i * r + c] < 0.0 else 1.0
        for l in range(i, q):
            L[l * q + i] = x * A[l * r + c]
        c += 1


def lower_factor(const double[:, :] F):
    """Lower triangular L with non-negative diagonal and L L' = F F'; where that is zero, so is the column.

    Rotations of the columns of F itself: a singular F F' needs no care.

    Parameters
    ----------
    F : (q, r) array

    Returns
    -------
    (q, q) array
    """
    cdef Py_ssize_t q = F.shape[0], r = F.shape[1], i, j
    out_array = np.empty((q, q))
    if q == 0:
        return out_array
    cdef double[:, ::1] L = out_array
    cdef double* A = doubles(q * r)
    for i in range(q):
        for j in range(r):
            A[i * r + j] = F[i, j]
    lower(q, r, A, &L[0, 0])
    free(A)
    return out_array


def floored_factor(const double[:, :] matrix, double floor, double scale=1.0, double shift=0.0):
    """Lower triangular L of scale * matrix + shift * I, symmetric, its eigenvalues below `floor` raised to it.

    Parameters
    ----------
    matrix : (q, q) array
    floor : float
        Not negative.
    scale, shift : float

    Returns
    -------
    (q, q) array
    """
    cdef Py_ssize_t q = matrix.shape[0], i, j
    out_array = np.empty((q, q))
    cdef double* A = doubles(3 * q * q + q)
    cdef double* given = A + 2 * q * q + q
    for i in range(q):
        for j in range(q):
            given[i * q + j] = matrix[i, j]
    raise_floor(q, given, floor, scale, shift, A, <double*> place(out_array))
    free(A)
    return out_array


cdef void raise_floor(Py_ssize_t q, const double* matrix, double floor, double scale, double shift, double* work,
                      double* L) noexcept nogil:
    """`floored_factor`; work: 2 q^2 + q doubles."""
    cdef double* vectors = work + q * q
    cdef double* values = vectors + q * q
    cdef double root
    cdef Py_ssize_t i, j
    for i in range(q):
        for j in range(q):
            work[i * q + j] = scale * matrix[i * q + j] + (shift if i == j else 0.0)
    jacobi(q, work, vectors, values)
    for j in range(q):
        root = sqrt(values[j] if values[j] > floor else floor)
        for i in range(q):
            vectors[i * q + j] *= root
    lower(q, q, vectors, L)

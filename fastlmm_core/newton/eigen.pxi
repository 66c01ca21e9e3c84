# Eigenvalues and eigenvectors of symmetric matrices of up to a few dozen rows.

cdef void tridiagonal(Py_ssize_t n, double* V, double* d, double* e) noexcept nogil:
    """Householder's reduction: V (symmetric) <- rows of Q' with Q'VQ tridiagonal, d its diagonal, e[1:] beside it.

    Martin, Reinsch and Wilkinson (1968), Numer. Math. 11, 181-195 (tred2), by rows.
    """
    cdef Py_ssize_t i, j, k
    cdef double scale, h, f, g
    cdef double* row
    for j in range(n):
        d[j] = V[j * n + n - 1]
    for i in range(n - 1, 0, -1):
        scale = 0.0
        h = 0.0
        for k in range(i):
            scale += fabs(d[k])
        if scale == 0.0:
            e[i] = d[i - 1]
            for j in range(i):
                d[j] = V[j * n + i - 1]
                V[j * n + i] = 0.0
                V[i * n + j] = 0.0
        else:
            for k in range(i):
                d[k] /= scale
                h += d[k] * d[k]
            f = d[i - 1]
            g = -sqrt(h) if f > 0.0 else sqrt(h)
            e[i] = scale * g
            h -= f * g
            d[i - 1] = f - g
            for j in range(i):
                e[j] = 0.0
            for j in range(i):
                row = V + j * n
                f = d[j]
                V[i * n + j] = f
                g = e[j] + row[j] * f
                for k in range(j + 1, i):
                    g += row[k] * d[k]
                    e[k] += row[k] * f
                e[j] = g
            f = 0.0
            for j in range(i):
                e[j] /= h
                f += e[j] * d[j]
            f /= h + h
            for j in range(i):
                e[j] -= f * d[j]
            for j in range(i):
                row = V + j * n
                f = d[j]
                g = e[j]
                for k in range(j, i):
                    row[k] -= f * e[k] + g * d[k]
                d[j] = row[i - 1]
                row[i] = 0.0
        d[i] = h
    for i in range(n - 1):
        V[i * n + n - 1] = V[i * n + i]
        V[i * n + i] = 1.0
        h = d[i + 1]
        row = V + (i + 1) * n
        if h != 0.0:
            for k in range(i + 1):
                d[k] = row[k] / h
            for j in range(i + 1):
                g = 0.0
                for k in range(i + 1):
                    g += row[k] * V[j * n + k]
                for k in range(i + 1):
                    V[j * n + k] -= g * d[k]
        for k in range(i + 1):
            row[k] = 0.0
    for j in range(n):
        d[j] = V[j * n + n - 1]
        V[j * n + n - 1] = 0.0
    V[n * n - 1] = 1.0
    e[0] = 0.0


cdef void diagonal(Py_ssize_t n, double* V, double* d, double* e) noexcept nogil:
    """Eigenvalues d of the tridiagonal matrix (d, e), its eigenvectors times the rows of V, by implicit QL steps.

    Bowdler, Martin, Reinsch and Wilkinson (1968), Numer. Math. 11, 293-306 (tql2), by rows.
    """
    cdef Py_ssize_t i, k, l, m, trial
    cdef double shift = 0.0, size = 0.0, g, p, r, h, next_d, c, c2, c3, next_e, s, s2
    cdef double* upper
    cdef double* lower
    for i in range(1, n):
        e[i - 1] = e[i]
    e[n - 1] = 0.0
    for l in range(n):
        size = max(size, fabs(d[l]) + fabs(e[l]))
        m = l
        while m < n - 1 and fabs(e[m]) > 2.3e-16 * size:
            m += 1
        for trial in range(60):
            if m == l:
                break
            g = d[l]
            p = (d[l + 1] - g) / (2.0 * e[l])
            r = hypot(p, 1.0)
            if p < 0.0:
                r = -r
            d[l] = e[l] / (p + r)
            d[l + 1] = e[l] * (p + r)
            next_d = d[l + 1]
            h = g - d[l]
            for i in range(l + 2, n):
                d[i] -= h
            shift += h
            p = d[m]
            c = 1.0
            c2 = c
            c3 = c
            next_e = e[l + 1]
            s = 0.0
            s2 = 0.0
            for i in range(m - 1, l - 1, -1):
                c3 = c2
                c2 = c
                s2 = s
                g = c * e[i]
                h = c * p
                r = hypot(p, e[i])
                e[i + 1] = s * r
                s = e[i] / r
                c = p / r
                p = c * d[i] - s * g
                d[i + 1] = h + s * (c * g + s * d[i])
                lower = V + i * n
                upper = lower + n
                for k in range(n):
                    h = upper[k]
                    upper[k] = s * lower[k] + c * h
                    lower[k] = c * lower[k] - s * h
            p = -s * s2 * c3 * next_e * e[l] / next_d
            e[l] = s * p
            d[l] = c * p
            if fabs(e[l]) <= 2.3e-16 * size:
                break
        d[l] += shift
        e[l] = 0.0


cdef void eigen(Py_ssize_t n, double* A, double* Q, double* w) noexcept nogil:
    """Eigenvalues w and eigenvectors (columns of Q) of the symmetric A, which is overwritten; no order is promised."""
    cdef Py_ssize_t i, j
    if n <= SWEEPS_UP_TO:
        jacobi(n, A, Q, w)
        return
    # the first row of Q is free until the end
    tridiagonal(n, A, w, Q)
    diagonal(n, A, w, Q)
    for i in range(n):
        for j in range(n):
            Q[i * n + j] = A[j * n + i]


def eigensystem(const double[:, ::1] matrix):
    """Eigenvalues, in no order, and eigenvectors (columns) of a symmetric (n, n) matrix."""
    cdef Py_ssize_t n = matrix.shape[0]
    A_array = np.array(matrix)
    Q_array = np.empty((n, n))
    w_array = np.empty(n)
    cdef double[:, ::1] A = A_array, Q = Q_array
    cdef double[::1] w = w_array
    if n:
        with nogil:
            eigen(n, &A[0, 0], &Q[0, 0], &w[0])
    return w_array, Q_array

# Loops over the visits of one pattern, which several modules of structured residuals share.  n visits of a table of m,
# given by their positions v; matrices by rows; rows of a pattern as (n, wide): visit,
# then row of the pattern and column.
from libc.math cimport NAN, log, sqrt
from libc.string cimport memcpy, memset

from fastlmm_core.small.cholesky cimport cholesky


cdef inline double factored(Py_ssize_t n, const double* S, Py_ssize_t m, const Py_ssize_t* v, double* L) noexcept nogil:
    """L (n, n) with L L' = S[v, v], its log-determinant; NaN where it is not positive definite."""
    cdef Py_ssize_t i, j
    cdef double total = 0.0
    for i in range(n):
        for j in range(i + 1):
            L[i * n + j] = S[v[i] * m + v[j]]
    if not cholesky(n, L, 1e-14):
        return NAN
    for i in range(n):
        total += 2.0 * log(L[i * n + i])
    return total


cdef inline double rooted(Py_ssize_t n, const double* A, Py_ssize_t m, const Py_ssize_t* v, double* L, double* Q
                   ) noexcept nogil:
    """L (n, n) with L L' = A[v] A[v]' by Gram and Schmidt's method, twice; its log-determinant,
    NaN where it is singular.

    A is (., m), Q (n, m) work space.
    """
    cdef Py_ssize_t i, j, l, turn
    cdef double t, length, total = 0.0
    cdef double* q
    for i in range(n):
        q = Q + i * m
        length = 0.0
        for l in range(m):
            q[l] = A[v[i] * m + l]
            length += q[l] * q[l]
        for j in range(i):
            L[i * n + j] = 0.0
        for turn in range(2):
            for j in range(i):
                t = 0.0
                for l in range(m):
                    t += q[l] * Q[j * m + l]
                for l in range(m):
                    q[l] -= t * Q[j * m + l]
                L[i * n + j] += t
        t = 0.0
        for l in range(m):
            t += q[l] * q[l]
        if not t > 1e-28 * length:
            return NAN
        t = sqrt(t)
        L[i * n + i] = t
        total += 2.0 * log(t)
        t = 1.0 / t
        for l in range(m):
            q[l] *= t
    return total


cdef inline void ahead(Py_ssize_t n, Py_ssize_t wide, const double* L, double* Y) noexcept nogil:
    """Y (n, wide) <- L^-1 Y."""
    cdef Py_ssize_t a, b, i
    cdef double t
    for a in range(n):
        for b in range(a):
            t = L[a * n + b]
            for i in range(wide):
                Y[a * wide + i] -= t * Y[b * wide + i]
        t = 1.0 / L[a * n + a]
        for i in range(wide):
            Y[a * wide + i] *= t


cdef inline void back(Py_ssize_t n, Py_ssize_t wide, const double* L, double* Y) noexcept nogil:
    """Y (n, wide) <- L^-T Y."""
    cdef Py_ssize_t a, b, i
    cdef double t
    for a in range(n - 1, -1, -1):
        for b in range(a + 1, n):
            t = L[b * n + a]
            for i in range(wide):
                Y[a * wide + i] -= t * Y[b * wide + i]
        t = 1.0 / L[a * n + a]
        for i in range(wide):
            Y[a * wide + i] *= t


cdef inline void spread(Py_ssize_t n, Py_ssize_t wide, const double* P, const double* Y, double* out) noexcept nogil:
    """out (n, wide) = P Y."""
    cdef Py_ssize_t a, b, i
    cdef double t
    memset(out, 0, n * wide * sizeof(double))
    for a in range(n):
        for b in range(n):
            t = P[a * n + b]
            for i in range(wide):
                out[a * wide + i] += t * Y[b * wide + i]


cdef inline void inverted(Py_ssize_t n, const double* L, double* W, double* work) noexcept nogil:
    """W = L^-T L^-1 (n, n)."""
    cdef Py_ssize_t i, j, l
    cdef double t
    for j in range(n):
        for i in range(n):
            work[i * n + j] = 0.0
        work[j * n + j] = 1.0 / L[j * n + j]
        for i in range(j + 1, n):
            t = 0.0
            for l in range(j, i):
                t -= L[i * n + l] * work[l * n + j]
            work[i * n + j] = t / L[i * n + i]
    for i in range(n):
        for j in range(i + 1):
            t = 0.0
            for l in range(i, n):
                t += work[l * n + i] * work[l * n + j]
            W[i * n + j] = t
            W[j * n + i] = t


cdef inline void moments(Py_ssize_t n, Py_ssize_t N, Py_ssize_t c, const double* A, double* X,
                         double* E) noexcept nogil:
    """X = sum A_i A_i' and E = sum e_i e_i' (n, n) for the rows [A e] (n, N, c)."""
    cdef Py_ssize_t a, b, i, j
    cdef double x, e
    cdef const double* left
    cdef const double* right
    for a in range(n):
        for b in range(a + 1):
            x = 0.0
            e = 0.0
            left = A + a * N * c
            right = A + b * N * c
            for i in range(N):
                for j in range(c - 1):
                    x += left[j] * right[j]
                e += left[c - 1] * right[c - 1]
                left += c
                right += c
            X[a * n + b] = x
            X[b * n + a] = x
            E[a * n + b] = e
            E[b * n + a] = e


cdef inline double whitened_beside(Py_ssize_t n, const double* L, const double* G, double* out) noexcept nogil:
    """out (n, n) = L^-1 G, and its sum of squares."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    memcpy(out, G, n * n * sizeof(double))
    ahead(n, n, L, out)
    for i in range(n * n):
        total += out[i] * out[i]
    return total


cdef inline void add_beside(Py_ssize_t n, const double* G, double* E) noexcept nogil:
    """E (n, n) += G G'."""
    cdef Py_ssize_t a, b, i
    cdef double t
    for a in range(n):
        for b in range(a + 1):
            t = 0.0
            for i in range(n):
                t += G[a * n + i] * G[b * n + i]
            E[a * n + b] += t
            if b < a:
                E[b * n + a] += t


cdef inline void bend(Py_ssize_t n, const double* F, const double* W, const Py_ssize_t* v, double* out, Py_ssize_t width
               ) noexcept nogil:
    """Add tr(D F D' W), symmetrised, for pairs of symmetric unit directions (lower triangle of `out`)."""
    cdef Py_ssize_t a, b, c, d, p, q
    cdef double t
    for a in range(n):
        for b in range(a + 1):
            p = v[a] * (v[a] + 1) // 2 + v[b]
            for c in range(a + 1):
                for d in range(c + 1):
                    if c == a and d > b:
                        break
                    q = v[c] * (v[c] + 1) // 2 + v[d]
                    t = (F[b * n + c] * W[d * n + a] + F[b * n + d] * W[c * n + a] + F[a * n + c] * W[d * n + b]
                         + F[a * n + d] * W[c * n + b] + W[b * n + c] * F[d * n + a] + W[b * n + d] * F[c * n + a]
                         + W[a * n + c] * F[d * n + b] + W[a * n + d] * F[c * n + b])
                    if a == b:
                        t *= 0.5
                    if c == d:
                        t *= 0.5
                    out[p * width + q] += 0.5 * t


cdef inline void rooted_rows(Py_ssize_t n, Py_ssize_t N, double* Y, double* G) noexcept nogil:
    """G (n, n) with G G' = Y Y' for Y (n, N), which is overwritten: Gram and Schmidt's method, modified,
    on its rows."""
    cdef Py_ssize_t a, b, i
    cdef double t, size
    memset(G, 0, n * n * sizeof(double))
    for a in range(n):
        t = 0.0
        for i in range(N):
            t += Y[a * N + i] * Y[a * N + i]
        if t == 0.0:
            continue
        size = sqrt(t)
        G[a * n + a] = size
        for b in range(a + 1, n):
            t = 0.0
            for i in range(N):
                t += Y[a * N + i] * Y[b * N + i]
            t /= size
            G[b * n + a] = t
            t /= size
            for i in range(N):
                Y[b * N + i] -= t * Y[a * N + i]

# Groups one by one: factored, all of one pattern, their effects and moments;
# arrays for what lanes/lanes.pyx loops over.

def factor_groups(const double[:, ::1] raw, const double[:, ::1] z_transform, const double[:, ::1] xy_transform,
                  Py_ssize_t jobs=1):
    """Rotate and factor the cross-products of groups.

    Parameters
    ----------
    raw : (m, K) array
        As returned by ``accumulate``.
    z_transform, xy_transform : upper triangular (q, q) and (p+1, p+1) arrays
    jobs : int
        Threads at most.

    Returns
    -------
    packed : (ceil(m / lanes), K, lanes) array
    between : ((p+1)(p+2)/2,) array
        Sum of c_i'c_i: the part of [X y]'[X y] that the columns of Z explain within groups.
    """
    cdef Shape shape = make_shape(z_transform.shape[0], xy_transform.shape[0])
    cdef Py_ssize_t m = raw.shape[0], k = shape.k, n_h = k * (k + 1) // 2
    cdef Py_ssize_t n_blocks = (m + kernels.lanes - 1) // kernels.lanes
    cdef bint many = k >= MANY
    out = np.empty((n_blocks, shape.stride, kernels.lanes))
    between = np.zeros(n_h)
    cdef Workshop shop = Workshop(jobs, 0, NULL)
    cdef Sweep sweep
    lines = turned_lines(raw, xy_transform, shape.n_a) if many else raw
    cdef const double[:, ::1] given = lines
    cdef double[:, :, ::1] packed = out
    cdef double[::1] b = between
    cdef RawGroups groups = RawGroups(m, &given[0, 0], &z_transform[0, 0], &xy_transform[0, 0])
    if many:
        groups.Tx = NULL
    sweep.shape, sweep.raw = &shape, &groups
    if equip(&shop, &sweep, n_blocks, n_h, (shape.q * shape.q + shape.n_c + 2 * shape.q + n_h) * kernels.lanes) < 0:
        raise MemoryError()
    with nogil:
        factor_parts(&sweep, &packed[0, 0, 0], &b[0], 0 if many else n_h, jobs)
        free(shop.memory)
    if many:
        c = out[:, shape.n_a:-1].reshape(n_blocks, shape.q, k, -1).transpose(2, 0, 1, 3).reshape(k, -1)
        between = (c @ c.T)[np.tril_indices(k)]
    return out, between


def factor_alike(const double[:, ::1] raw, const double[:, ::1] z_transform, const double[:, ::1] xy_transform,
                 Py_ssize_t jobs=1):
    """`factor_groups` and `compress` of groups that all have the same Z_i'Z_i, in one go.

    Parameters
    ----------
    raw, z_transform, xy_transform, jobs
        As for `factor_groups`.

    Returns
    -------
    packed : (blocks, K, lanes) array
        As `compress` gives it.
    between : ((p+1)(p+2)/2,) array

    None where groups differ, or are too few.
    """
    cdef Shape shape = make_shape(z_transform.shape[0], xy_transform.shape[0])
    cdef Py_ssize_t m = raw.shape[0], q = shape.q, k = shape.k, n_c = shape.n_c, n_g = n_c * (n_c + 1) // 2
    cdef Py_ssize_t n_blocks = (m + kernels.lanes - 1) // kernels.lanes
    cdef RawGroups groups = RawGroups(m, &raw[0, 0], &z_transform[0, 0], &xy_transform[0, 0])
    cdef Workshop shop = Workshop(jobs, 0, NULL)
    cdef Sweep sweep
    cdef bint alike
    if k >= MANY or (n_c + kernels.lanes - 1) // kernels.lanes >= n_blocks:
        return None
    pattern, gram = np.empty(shape.n_a), np.empty(n_g)
    cdef double[::1] pattern_view = pattern, gram_view = gram
    sweep.shape, sweep.raw = &shape, &groups
    if equip(&shop, &sweep, n_blocks, n_g, (q * q + 2 * n_c + 2 * q + shape.n_a + 1 + n_g) * kernels.lanes) < 0:
        raise MemoryError()
    with nogil:
        alike = alike_parts(&sweep, &pattern_view[0], &gram_view[0], n_g, jobs)
        free(shop.memory)
    if not alike:
        return None
    own = gram[unpacking(n_c)].reshape(q, k, q, k)
    between = np.einsum("aiaj->ij", own)[np.tril_indices(k)]
    return stand_for(pattern, gram, m, q, k, kernels.lanes), between


cdef object turned_lines(raw, xy_transform, Py_ssize_t n_a):
    """Lines of `raw` with C T for C, by BLAS."""
    lines = np.array(raw)
    crossed = lines[:, n_a:-1]
    crossed[...] = (crossed.reshape(-1, len(xy_transform)) @ np.asarray(xy_transform)).reshape(crossed.shape)
    return lines


def group_effects(const double[:, :, ::1] packed, Py_ssize_t n_groups, const double[:, ::1] factor,
                  const double[::1] contrast, bint precision=False, bint conditional=False):
    """e_i = Z_i'V_i^-1 [X_i y_i] contrast of every group and, if asked for, a matrix of each.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
    n_groups : int
    factor : (q, q) array
        L.
    contrast : (p + 1,) array
    precision, conditional : bool
        Which matrix, if any: N_i = Z_i'V_i^-1 Z_i, or L (I + L'Z_i'Z_i L)^-1 L', which is cov(b_i | y) / sigma^2.

    Returns
    -------
    e : (n_groups, q) array
    matrices : (n_groups, q, q) array or None
    """
    cdef Shape shape = make_shape(factor.shape[0], contrast.shape[0])
    cdef Py_ssize_t n_blocks = packed.shape[0]
    cdef PackedGroups groups = PackedGroups(shape, n_blocks, False, &packed[0, 0, 0])
    cdef bint wanted = precision or conditional
    e_array = np.empty((n_blocks * kernels.lanes, shape.q))
    matrix_array = np.empty((n_blocks * kernels.lanes, shape.q, shape.q)) if wanted else None
    scratch = np.empty((4 * shape.q * shape.q + shape.n_c + shape.q) * kernels.lanes)
    cdef double[:, ::1] e = e_array
    cdef double[::1] s = scratch
    cdef double[:, :, ::1] matrices
    cdef double* out = NULL
    if wanted:
        matrices = matrix_array
        out = &matrices[0, 0, 0]
    with nogil:
        kernels.effects(&groups, &factor[0, 0], &contrast[0], &e[0, 0], out, conditional, &s[0])
    return e_array[:n_groups], matrix_array[:n_groups] if wanted else None


def group_moments(const double[:, :, ::1] packed, bint uniform, const double[:, ::1] factor, Py_ssize_t k):
    """What the sums of the criterion are made of, group by group.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
    uniform : bool
        Whether every group stands for itself.
    factor : (q, q) array
        L.
    k : int
        Columns of [X y].

    Returns
    -------
    log_det : float
        sum n_i log|V_i|.
    N : (q(q+1)/2, places) array
        Z_i'V_i^-1 Z_i, lower triangle by rows.
    D, E : (k, q, places) arrays
        [X_i y_i]'V_i^-1 [X_i y_i] is its part within groups and D_i'D_i; E_i = Z_i'V_i^-1 [X_i y_i].
    """
    cdef Shape shape = make_shape(factor.shape[0], k)
    cdef Py_ssize_t q = shape.q, n_a = shape.n_a, n_c = shape.n_c, n_blocks = packed.shape[0], lanes = kernels.lanes
    cdef PackedGroups groups = PackedGroups(shape, n_blocks, uniform, &packed[0, 0, 0])
    cdef Sums sums
    cdef double log_det
    cdef double[::1] s = np.empty(lanes * (3 * q * q + 2 * n_c + 2 * n_a))
    cdef double[::1] sum_n = np.empty(n_a)
    store = np.empty((n_blocks, n_a + n_c, lanes))
    root = np.empty((n_blocks, n_c, lanes))
    cdef double[:, :, ::1] store_view = store, root_view = root
    sums.sum_n, sums.sum_h, sums.gram = &sum_n[0], NULL, NULL
    sums.store, sums.root = &store_view[0, 0, 0], &root_view[0, 0, 0]
    with nogil:
        log_det = kernels.moments(&groups, &factor[0, 0], &sums, &s[0])
    N = store[:, :n_a].transpose(1, 0, 2).reshape(n_a, -1)
    parts = root, store[:, n_a:]
    D, E = (part.reshape(n_blocks, q, k, lanes).transpose(2, 1, 0, 3).reshape(k, q, -1) for part in parts)
    return log_det, N, D, E

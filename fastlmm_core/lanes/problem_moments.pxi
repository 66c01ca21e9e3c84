# What tests of the fixed effects of many problems need, from the sweep of problems.pxi at the theta of each.
#
# uses   lay_problems, load_problems (problems.pxi), evaluate_responses (response_sweeps.pxi)
# gives  problems_moments (a kernel of one_factor/each.pyx)


cdef void weigh_outer(Py_ssize_t q, Py_ssize_t k, Lanes* s) noexcept nogil:
    """tensor = sum N (x) N and weighted = sum N (x) vec(E_x) vec(E_x)', of what `sweep_problems` keeps."""
    cdef Py_ssize_t p = k - 1, n_a = q * (q + 1) // 2, n_e = q * p, n_outer = n_e * (n_e + 1) // 2, g, a, i, j, l, pos
    cdef vecu* weighted = <vecu*> s.own.weighted
    cdef vecu* e = <vecu*> s.small
    cdef const vecu* N
    cdef const vecu* E
    cdef vec t
    for pos in range(n_a * n_a):
        (<vecu*> s.f.tensor)[pos] = VEC_SET(0.0)
    for pos in range(n_a * n_outer):
        weighted[pos] = VEC_SET(0.0)
    for g in range(s.own.m):
        N = (<vecu*> s.own.store) + g * (n_a + q * k)
        E = N + n_a
        add_tensor(n_a, N, N, <vecu*> s.f.tensor)
        for a in range(q):
            for j in range(p):
                e[a * p + j] = E[a * k + j]
        for l in range(n_a):
            pos = l * n_outer
            for i in range(n_e):
                t = N[l] * e[i]
                for j in range(i + 1):
                    weighted[pos + j] = weighted[pos + j] + t * e[j]
                pos = pos + i + 1


cdef inline vec packed_at(const vecu* packed, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """An element of a symmetric matrix of which the lower triangle is packed by rows."""
    return packed[i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i]


cdef inline void cross_moment(Py_ssize_t k, const vecu* gram, Py_ssize_t a, Py_ssize_t b, vecu* out) noexcept nogil:
    """X'V^-1 D V^-1 X (p, p) of the direction (a, b): sum E_x'D E_x."""
    cdef Py_ssize_t p = k - 1, i, j
    for i in range(p):
        for j in range(p):
            out[i * p + j] = packed_at(gram, a * k + i, b * k + j)
            if a != b:
                out[i * p + j] = out[i * p + j] + packed_at(gram, b * k + i, a * k + j)


cdef inline vec both_moments(Py_ssize_t q, Py_ssize_t p, Lanes* s, const Py_ssize_t* one, const Py_ssize_t* other,
                             vecu* out) noexcept nogil:
    """tr(V^-1 D V^-1 F), and X'V^-1 D V^-1 F V^-1 X (p, p) of directions `one` and `other`: sum E_x'D N F E_x."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_e = q * p, n_outer = n_e * (n_e + 1) // 2
    cdef Py_ssize_t turn, back, a, b, c, d, i, j, at
    cdef const vecu* weighted
    for i in range(p * p):
        out[i] = VEC_SET(0.0)
    for turn in range(1 if one[0] == one[1] else 2):
        a = one[turn]
        b = one[1 - turn]
        for back in range(1 if other[0] == other[1] else 2):
            c = other[back]
            d = other[1 - back]
            at = b * (b + 1) // 2 + c if b >= c else c * (c + 1) // 2 + b
            weighted = (<vecu*> s.own.weighted) + at * n_outer
            for i in range(p):
                for j in range(p):
                    out[i * p + j] = out[i * p + j] + packed_at(weighted, a * p + i, d * p + j)
    return expected_at(n_a, <vecu*> s.f.tensor, one, other)


cdef inline void write_lanes(const vecu* values, Py_ssize_t n, const Py_ssize_t* place, Py_ssize_t count,
                             Py_ssize_t step, double* out) noexcept nogil:
    """Each lane's values to `out + place step`."""
    cdef Py_ssize_t lane, i
    for lane in range(count):
        for i in range(n):
            out[place[lane] * step + i] = (<const double*> (values + i))[lane]


cdef void write_moments(const Batch* d, Lanes* s, const Py_ssize_t* place, Py_ssize_t count, const DesignMoments* out
                        ) noexcept nogil:
    """What tests need along the free elements of G^, row by row of its lower triangle."""
    cdef Py_ssize_t q = d.q, p = d.p, k = p + 1, n = d.n_par, pairs = n * (n + 1) // 2, pair = 0
    cdef Py_ssize_t a, b, c, e, i, j, at = 0
    cdef Py_ssize_t one[2]
    cdef Py_ssize_t other[2]
    cdef vecu* square = <vecu*> s.small
    cdef vec trace
    for i in range(p):
        for j in range(p):
            square[i * p + j] = (<vecu*> s.f.gls.inverse)[i * k + j] if j <= i else VEC_SET(0.0)
    write_lanes(square, p * p, place, count, p * p, out.half)
    for a in range(q):
        for b in range(a + 1):
            if not d.structure[a * q + b]:
                continue
            one[0], one[1] = a, b
            trace = (<vecu*> s.f.sum_n)[a * (a + 1) // 2 + b] * VEC_SET(1.0 if a == b else 2.0)
            write_lanes(<vecu*> &trace, 1, place, count, n, out.trace + at)
            cross_moment(k, <vecu*> s.f.gram, a, b, square)
            write_lanes(square, p * p, place, count, n * p * p, out.cross + at * p * p)
            at += 1
            for c in range(a + 1):
                for e in range(c + 1):
                    if not d.structure[c * q + e] or c == a and e > b:
                        continue
                    other[0], other[1] = c, e
                    trace = both_moments(q, p, s, one, other, square)
                    write_lanes(<vecu*> &trace, 1, place, count, pairs, out.square + pair)
                    write_lanes(square, p * p, place, count, pairs * p * p, out.both + pair * p * p)
                    pair += 1


cdef void problems_moments(const Batch* d, const ProblemSums* sums, const Screen* screen, const double* theta,
                           const Py_ssize_t* place, Py_ssize_t count, const DesignMoments* out, double* work
                           ) noexcept nogil:
    """What tests of fixed effects need of a block of LANES problems at theta (LANES, n_par), by REML.

    Those of the first `count` lanes go to rows `place` of the results.
    """
    cdef Lanes s
    cdef OwnGroups own
    cdef Fates f
    cdef Minima found
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t lane, i, m = 0
    for lane in range(LANES):
        m = max(m, sums[lane].m)
    lay_problems(d, screen, m, &s, &own, &found, &arena)
    load_problems(d, sums, &s, &own, &f)
    s.own = &own
    for lane in range(LANES):
        for i in range(d.n_par):
            s.theta[i * LANES + lane] = theta[lane * d.n_par + i]
    set_factor(d, &s, <vecu*> s.theta)
    evaluate_responses(d, &s, 1)
    if d.q == 1:
        weigh_outer(1, d.p + 1, &s)
    else:
        weigh_outer(d.q, d.p + 1, &s)
    write_moments(d, &s, place, count, out)


offered.problems_moments = &problems_moments

# Responses that are read once: what all their searches need of them.
#
# A line holds what `read_responses` leaves: c_y of the columns (n_columns, q), the rest of each pattern of several
# groups (n_a,), X'y within groups and y'y there (p + 1,), the coefficients of least squares (p,), y'y less what X
# explains, and what was taken from the response, last.  Numbers are those that a search would find itself,
# to the last bit.


cdef inline void keep_vectors(const Lanes* s, const double* values, Py_ssize_t count, Py_ssize_t width, double* out
                              ) noexcept nogil:
    """`count` vectors to the lines of the lanes in use, `width` apart."""
    cdef Py_ssize_t i, lane
    for lane in range(s.used):
        for i in range(count):
            out[lane * width + i] = values[i * LANES + lane]


cdef void batch_sum(const Batch* d, const double* Y, Py_ssize_t stride, const Py_ssize_t* which, Py_ssize_t count,
                    double* lines, double* work) noexcept nogil:
    """Lines (count, sums_width) of the rows `which` of Y, or of the first ones where that is NULL."""
    cdef Lanes s
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t at = 0, lane, pattern, pos, place, width = sums_width(d), n_a = d.q * (d.q + 1) // 2
    cdef vec total
    lay_lanes(d, &s, &arena)
    while at < count:
        s.used = min(LANES, count - at)
        for lane in range(LANES):
            place = at + min(lane, s.used - 1)
            s.place[lane] = place if which == NULL else which[place]
        read_responses(d, &s, Y, stride, &total)
        keep_vectors(&s, s.cy, d.n_columns * d.q, width, lines)
        pos = d.n_columns * d.q
        for pattern in range(d.n_patterns):
            if d.groups[pattern + 1] - d.groups[pattern] > 1:
                keep_vectors(&s, s.rest + LANES * pattern * n_a, n_a, width, lines + pos)
                pos += n_a
        keep_vectors(&s, s.within, d.p + 1, width, lines + pos)
        keep_vectors(&s, s.beta, d.p, width, lines + pos + d.p + 1)
        keep_vectors(&s, <double*> &total, 1, width, lines + width - 2)
        for lane in range(s.used):
            lines[(lane + 1) * width - 1] = Y[s.place[lane] * stride + d.anchor] if d.centre else 0.0
        lines += s.used * width
        at += LANES


cdef void read_sums(const Batch* d, Lanes* s, const double* lines, Py_ssize_t width, vec* residual) noexcept nogil:
    """A block of lines: what `read_responses` would leave."""
    cdef Py_ssize_t pattern, i, pos = d.n_columns * d.q, n_a = d.q * (d.q + 1) // 2
    read_lines(s, lines, width, 0, pos, s.cy)
    for pattern in range(d.n_patterns):
        if d.groups[pattern + 1] - d.groups[pattern] > 1:
            read_lines(s, lines, width, pos, n_a, s.rest + LANES * pattern * n_a)
            pos += n_a
            continue
        for i in range(pattern * n_a, (pattern + 1) * n_a):
            (<vecu*> s.rest)[i] = VEC_SET(0.0)
    read_lines(s, lines, width, pos, d.p + 1, s.within)
    read_lines(s, lines, width, pos + d.p + 1, d.p, s.beta)
    read_lines(s, lines, width, width - 2, 1, <double*> residual)


offered.batch_sum = &batch_sum

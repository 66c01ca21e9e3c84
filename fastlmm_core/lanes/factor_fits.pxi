# The fits of many responses with several grouping factors: the screen from which a search starts, the search, and what
# tests need of the design.  The terms are those of factors.pxi.

# ------------------------------------------------------------------------------------------------------------- screen

cdef void screen_part(const Batch* b, Lanes* s, FactorSpace* w, Py_ssize_t part, Py_ssize_t point, vec* total
                      ) noexcept nogil:
    """What a part takes out of y'V_1^-1 y and X'V_1^-1 y at a point of the screen."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, J = d.core[part + 1] - d.core[part], pieces = d.piece[part + 1] - d.piece[part], i, j
    cdef const Py_ssize_t* pattern = d.pattern + d.piece[part]
    cdef const double* share = d.screen.share + point * d.n_patterns
    cdef const double* half = d.screen.half + point * d.screen.n_half + d.square_at[part]
    cdef const double* half_x = d.screen.half_x + (point * d.n_core + d.core[part]) * p
    cdef const vecu* cy = (<vecu*> w.piece_cy) + d.piece_at[part]
    cdef vecu* own = <vecu*> w.D
    cdef vecu* xy = <vecu*> s.row
    cdef vec t
    for i in range(J):
        t = (<vecu*> w.within_cy)[d.core[part] + i]
        for j in range(pieces):
            t = t + share[pattern[j]] * cy[i * pieces + j]
        own[i] = t
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + half[j] * own[j]
        half = half + i + 1
        total[0] = total[0] - t * t
        for j in range(p):
            xy[j] = xy[j] - half_x[i * p + j] * t


cdef void screen_factors(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    """w.values (n_points,): the criterion at the points of the screen, infinite where it is not defined."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, point, part, g, i, j
    cdef const double* share
    cdef const double* half
    cdef vecu* xy = <vecu*> s.row
    cdef vecu* values = <vecu*> w.values
    cdef vec total, t
    for point in range(d.screen.n_points):
        share = d.screen.share + point * d.n_patterns
        half = d.screen.half_xx + point * (p * (p + 1) // 2)
        total = (<vecu*> s.within)[p]
        for j in range(p):
            xy[j] = (<vecu*> s.within)[j]
        for g in range(d.n_patterns):
            total = total + share[g] * (<vecu*> w.pattern_yy)[g]
            for j in range(p):
                xy[j] = xy[j] + share[g] * (<vecu*> w.pattern_xy)[g * p + j]
        for part in range(d.n_parts):
            screen_part(b, s, w, part, point, &total)
        for i in range(p):
            t = VEC_SET(0.0)
            for j in range(i + 1):
                t = t + half[j] * xy[j]
            half = half + i + 1
            total = total - t * t
        t = total * (2.0 * M_PI / b.nu)
        values[point] = VEC_WHERE_POSITIVE(
            t, d.screen.constant[point] + b.nu * (VEC_LOG(t) + 1.0), VEC_SET(1e300) * 1e300)


cdef void start_at_lowest(const Batch* b, Lanes* s, const FactorScreen* screen, const double* values, const Outcome* out
                        ) noexcept nogil:
    """theta of the lowest point of the screen, of the values at all; the other starts are written down."""
    cdef Py_ssize_t n = b.n_par, wanted = screen.limit + screen.spread, lane, i, j
    cdef int found
    cdef int chosen[MOST_STARTS]
    for lane in range(LANES):
        found = choose_valleys(
            screen.neighbours, screen.near, screen.n_points, values + lane, screen.limit + 1, chosen)
        found = add_points(values + lane, screen.n_points, PointsWanted(screen.limit + 1, screen.lowest, screen.spread),
                           found, chosen)
        j = chosen[0] if chosen[0] >= 0 else 0
        for i in range(n):
            s.theta[i * LANES + lane] = screen.theta[j * n + i]
        for i in range(screen.n_points if out.values != NULL else 0):
            out.values[s.place[lane] * screen.n_points + i] = values[i * LANES + lane]
        for i in range(wanted if out.chosen != NULL else 0):
            out.chosen[s.place[lane] * wanted + i] = chosen[i + 1] if i + 1 < found else -1


cdef void finish_look(const Batch* b, Lanes* s, const Fates* f, const FactorScreen* screen,
                      const Outcome* out) noexcept nogil:
    """How near the boundary is; what has not ended is left to a single fit."""
    cdef Py_ssize_t wanted = screen.limit + screen.spread, lane, i
    cdef vec rise
    boundary_near(b, s, &rise)
    for lane in range(s.used):
        out.rise[s.place[lane]] = (<double*> &rise)[lane]
        for i in range(wanted if f.status[lane] <= 0 else 0):
            out.chosen[s.place[lane] * wanted + i] = -1


# --------------------------------------------------------------------------------------------------------------- fits

cdef void load_factors(const Batch* b, Lanes* s, FactorSpace* w, Fates* f, const double* Y) noexcept nogil:
    """What the responses at s.place contribute."""
    read_whitened(b, s, w.d.x, w.d.root, w.rows, Y, &f.total)
    file_rows(b, s, w)
    set_aside(b, s, f)
    f.size = VEC_SQRT(f.total * (1.0 / <double> b.n))
    file_leaves(b, w)
    rescale_factors(b, s, w, f)


cdef void ready_factors(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    cdef Py_ssize_t i
    s.several = w
    (<vecu*> s.f.gls.nu)[0] = VEC_SET(b.nu)
    for i in range(b.p):
        w.before[i] = 1.0
    w.before[b.p] = b.n
    s.f.gls.before = w.before
    for i in range(b.p_full * b.p):
        (<vecu*> s.x_map)[i] = VEC_SET(b.x_map[i])


cdef void factors_fit(const Batch* b, const FactorDesign* d, const double* Y, Py_ssize_t n_responses, Py_ssize_t first,
                      const Outcome* out, double* work) noexcept nogil:
    """Fit the rows of Y; results go to rows first, first + 1, ... of the outcome (see also Outcome.rows)."""
    cdef Lanes s
    cdef FactorSpace w
    cdef Fates f
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t block = 0, lane, i
    lay_factors(b, d, &s, &w, &arena)
    ready_factors(b, &s, &w)
    while block < n_responses:
        s.used = n_responses - block if n_responses - block < LANES else LANES
        for lane in range(LANES):
            # lanes beyond the last response repeat it
            s.place[lane] = block + (lane if lane < s.used else s.used - 1)
        load_factors(b, &s, &w, &f, Y)
        if out.rows != NULL:
            for lane in range(LANES):
                for i in range(b.n_par):
                    s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * b.n_par + i]
            set_factor(b, &s, <vecu*> s.theta)
            evaluate_factors(b, &s, 2)
            if out.params != NULL:
                write_coefficients(b, &s, &f, out, Y, b.n, first, s.used)
            write_contrasts(b, &s, out, first, s.used)
        else:
            if b.first_theta != NULL:
                first_theta(b, &s)
            else:
                screen_factors(b, &s, &w)
                start_at_lowest(b, &s, &d.screen, w.values, out)
            settle_lanes(b, &s, &f, b.max_iterations)
            write_searches(b, &s, &f, out, first, s.used)
            if not out.brief:
                write_coefficients(b, &s, &f, out, Y, b.n, first, s.used)
            if out.chosen != NULL:
                finish_look(b, &s, &f, &d.screen, out)
        block += LANES


cdef void factors_moments(const Batch* b, const FactorDesign* d, const double* theta, Py_ssize_t count,
                          const DesignMoments* out, double* work) noexcept nogil:
    """What tests of fixed effects need of the design at each theta (count, n_terms)."""
    cdef Lanes s
    cdef FactorSpace w
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t n = d.n_terms, p = b.p, k = p + 1, block = 0, lane, i, j, t, at, size = n * (n + 1) // 2
    lay_factors(b, d, &s, &w, &arena)
    ready_factors(b, &s, &w)
    # of a response that is nothing but what no effect reaches; the arena begins with zeros
    (<vecu*> s.within)[p] = VEC_SET(<double> b.n)
    while block < count:
        for lane in range(LANES):
            at = block + lane if block + lane < count else count - 1
            for i in range(n):
                s.theta[i * LANES + lane] = theta[at * n + i]
        set_factor(b, &s, <vecu*> s.theta)
        evaluate_factors(b, &s, 1)
        for lane in range(LANES if count - block > LANES else count - block):
            at = block + lane
            for i in range(p):
                for j in range(p):
                    out.half[(at * p + i) * p + j] = s.f.gls.inverse[(i * k + j) * LANES + lane] if j <= i else 0.0
                    for t in range(n):
                        out.cross[((at * n + t) * p + i) * p + j] = w.cross[((t * k + i) * k + j) * LANES + lane]
                    for t in range(size):
                        out.both[((at * size + t) * p + i) * p + j] = w.both[((t * k + i) * k + j) * LANES + lane]
            for t in range(n):
                out.trace[at * n + t] = w.trace[t * LANES + lane]
            for t in range(size):
                out.square[at * size + t] = w.square[t * LANES + lane]
        block += LANES


offered.factors_size = &factors_size
offered.factors_fit = &factors_fit
offered.factors_moments = &factors_moments

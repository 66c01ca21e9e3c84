# Sweeps over groups in parts, by one thread or several: the parts are the same for any number of threads, and their
# sums are added in order.
#
# uses   kernels, LaneKernels, PackedGroups, RawGroups, Shape, Sums
# gives  Workshop, equip; sum_moments, sum_curvature, factor_parts, alike_parts

cdef extern from "parts.h":
    void run_parts(void (*run)(void*, Py_ssize_t, Py_ssize_t) noexcept nogil, void* job, Py_ssize_t parts,
                   Py_ssize_t jobs) noexcept nogil

# What threads need beside what they sweep over.
cdef struct Workshop:
    Py_ssize_t jobs         # threads at most
    Py_ssize_t equipped     # jobs that there is room for
    double* memory

# A sweep under way.
cdef struct Sweep:
    const PackedGroups* groups
    const RawGroups* raw
    const Shape* shape
    const Sums* sums
    const double* factor
    const double* weight
    const double* store
    double* packed
    double* pattern
    Py_ssize_t first, n_groups, n_found, n_scratch
    double* found           # (parts, n_found)
    double* scratch         # (jobs, n_scratch)
    int differ


cdef inline Py_ssize_t count_parts(Py_ssize_t n_blocks) noexcept nogil:
    return (n_blocks + PART - 1) // PART


cdef int equip(Workshop* shop, Sweep* sweep, Py_ssize_t n_blocks, Py_ssize_t most_found, Py_ssize_t most_scratch
               ) noexcept nogil:
    """Room for the sums of all parts and the work space of all threads,
    kept for other sweeps of at most these sizes."""
    sweep.n_scratch = (most_scratch + 15) // 8 * 8
    if shop.memory == NULL or shop.equipped < shop.jobs:
        free(shop.memory)
        shop.equipped = shop.jobs
        shop.memory = <double*> calloc(
            count_parts(n_blocks) * most_found + shop.jobs * sweep.n_scratch, sizeof(double))
        if shop.memory == NULL:
            return -1
    sweep.scratch = shop.memory
    sweep.found = shop.memory + shop.equipped * sweep.n_scratch
    return 0


cdef inline PackedGroups part_of(const PackedGroups* groups, Py_ssize_t part) noexcept nogil:
    cdef PackedGroups own = groups[0]
    own.packed = groups.packed + part * PART * groups.shape.stride * kernels.lanes
    own.n_blocks = min(PART, groups.n_blocks - part * PART)
    return own


cdef void moments_part(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    cdef Sweep* s = <Sweep*> job
    cdef PackedGroups own = part_of(s.groups, part)
    cdef Sums sums
    cdef Py_ssize_t n_a = own.shape.n_a, n_h = own.shape.k * (own.shape.k + 1) // 2
    cdef double* found = s.found + part * s.n_found
    sums.sum_n = found + 1
    sums.sum_h = sums.sum_n + n_a
    sums.gram = sums.sum_h + n_h if s.sums.gram != NULL else NULL
    sums.store, sums.root = NULL, NULL
    if s.sums.store != NULL:
        sums.store = s.sums.store + part * PART * (n_a + own.shape.n_c) * kernels.lanes
    memset(sums.sum_h, 0, n_h * sizeof(double))
    found[0] = kernels.moments(&own, s.factor, &sums, s.scratch + worker * s.n_scratch)


cdef double sum_moments(const PackedGroups* groups, const double* factor, const Sums* sums, double* scratch,
                        Workshop* shop, Sweep* s) noexcept nogil:
    """`kernels.moments`."""
    cdef Py_ssize_t n_a = groups.shape.n_a, n_h = groups.shape.k * (groups.shape.k + 1) // 2
    cdef Py_ssize_t n_g = groups.shape.n_c * (groups.shape.n_c + 1) // 2 if sums.gram != NULL else 0, part, i
    cdef double log_det = 0.0
    cdef const double* found
    if groups.n_blocks <= PART:
        return kernels.moments(groups, factor, sums, scratch)
    s.groups, s.factor, s.sums, s.n_found = groups, factor, sums, 1 + n_a + n_h + n_g
    run_parts(moments_part, s, count_parts(groups.n_blocks), shop.jobs)
    memset(sums.sum_n, 0, n_a * sizeof(double))
    if n_g:
        memset(sums.gram, 0, n_g * sizeof(double))
    for part in range(count_parts(groups.n_blocks)):
        found = s.found + part * s.n_found
        log_det += found[0]
        for i in range(n_a):
            sums.sum_n[i] += found[1 + i]
        for i in range(n_h):
            sums.sum_h[i] += found[1 + n_a + i]
        for i in range(n_g):
            sums.gram[i] += found[1 + n_a + n_h + i]
    return log_det


cdef void curvature_part(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    cdef Sweep* s = <Sweep*> job
    cdef PackedGroups own = part_of(s.groups, part)
    kernels.curvature(
        &own, s.first, s.weight, s.store + part * PART * (own.shape.n_a + own.shape.n_c) * kernels.lanes,
        s.found + part * s.n_found, s.scratch + worker * s.n_scratch)


cdef void sum_curvature(const PackedGroups* groups, Py_ssize_t first, const double* weight, const double* store,
                        double* tensor, double* scratch, Workshop* shop, Sweep* s) noexcept nogil:
    """`kernels.curvature`."""
    cdef Py_ssize_t size = groups.shape.n_a * groups.shape.n_a, part, i
    if groups.n_blocks <= PART:
        kernels.curvature(groups, first, weight, store, tensor, scratch)
        return
    s.groups, s.first, s.weight, s.store, s.n_found = groups, first, weight, store, size
    run_parts(curvature_part, s, count_parts(groups.n_blocks), shop.jobs)
    memset(tensor, 0, size * sizeof(double))
    for part in range(count_parts(groups.n_blocks)):
        for i in range(size):
            tensor[i] += s.found[part * size + i]


cdef inline RawGroups raw_part(const Sweep* s, Py_ssize_t part) noexcept nogil:
    cdef RawGroups own = s.raw[0]
    cdef Py_ssize_t first = part * PART * kernels.lanes
    own.raw = s.raw.raw + first * s.shape.stride
    own.n_groups = min(PART * kernels.lanes, s.raw.n_groups - first)
    return own


cdef void factor_part(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    cdef Sweep* s = <Sweep*> job
    cdef RawGroups own = raw_part(s, part)
    kernels.factor(
        s.shape, &own, s.packed + part * PART * s.shape.stride * kernels.lanes,
        s.found + part * s.n_found if s.n_found else NULL, s.scratch + worker * s.n_scratch)


cdef void factor_parts(Sweep* s, double* packed, double* within, Py_ssize_t n_h, Py_ssize_t jobs) noexcept nogil:
    """`kernels.factor`; n_h: 0 where `within` is not wanted."""
    cdef Py_ssize_t part, i, parts = count_parts((s.raw.n_groups + kernels.lanes - 1) // kernels.lanes)
    s.packed, s.n_found = packed, n_h
    run_parts(factor_part, s, parts, jobs)
    for part in range(parts):
        for i in range(n_h):
            within[i] += s.found[part * n_h + i]


cdef void alike_part(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    cdef Sweep* s = <Sweep*> job
    cdef RawGroups own = raw_part(s, part)
    if s.differ == 0 and not kernels.factor_alike(
            s.shape, &own, s.pattern, s.found + part * s.n_found, s.scratch + worker * s.n_scratch):
        s.differ = 1


cdef bint alike_parts(Sweep* s, double* pattern, double* gram, Py_ssize_t n_g, Py_ssize_t jobs) noexcept nogil:
    """`kernels.factor_alike` of all groups, the pattern being that of the first one."""
    cdef Py_ssize_t part, i, parts = count_parts((s.raw.n_groups + kernels.lanes - 1) // kernels.lanes)
    cdef RawGroups first = s.raw[0]
    first.n_groups = min(kernels.lanes, first.n_groups)
    pattern[0] = -1.0
    if not kernels.factor_alike(s.shape, &first, pattern, s.found, s.scratch):
        return False
    s.pattern, s.n_found, s.differ = pattern, n_g, 0
    run_parts(alike_part, s, parts, jobs)
    memset(gram, 0, n_g * sizeof(double))
    for part in range(parts):
        for i in range(n_g):
            gram[i] += s.found[part * n_g + i]
    return s.differ == 0

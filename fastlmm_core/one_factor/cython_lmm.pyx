# cython: language_level=3
"""Fits, the criterion and solutions with V for callers without the interpreter; see cython_lmm.pxd.

`addresses` gives the functions to ctypes and numba, `capsule` to C: a table of pointers named "fastlmm_core.lmm".
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport NAN, fabs, isfinite, log, sqrt
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy, memset

# the lanes are chosen when the kernels are imported
import fastlmm_core.kernels

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.kernels._matrices cimport Regression, lower, regress, triangle, within_products
from fastlmm_core.kernels._rows cimport Pass, add_pass, probe_column, whole, work_size
from fastlmm_core.lanes.kernels cimport (
    PROBLEM_SIZE, Batch, Outcome, PackedGroups, ProblemSums, Profile, RawGroups, Screen, Shape, Sums, lay_profile,
    make_shape)
from fastlmm_core.small.arena cimport Arena, take
from fastlmm_core.small.conditional cimport conditional_covariance

include "conditioning.pxi"

__all__ = ["addresses", "capsule"]


# Everything that is laid out in the caller's work space.
cdef struct Desk:
    Conditioned c
    Batch batch
    Screen screen
    Outcome out
    Blocks blocks
    Py_ssize_t* positions       # rows and columns of the free elements of L, then of blocks
    int* structure              # (q, q)
    double* factor              # (q, q), and room for a solution
    double* lanes               # work space of the lanes
    double* packed              # groups as the criterion reads them
    double* between
    double* scratch
    double* H
    double* A                   # (m, q, q) Z'WZ
    double* u                   # (m, q)
    Profile f                   # what follows from them, in lanes


cdef bint possible(const lmm_problem* d) noexcept nogil:
    """Whether sizes and pointers can be those of a problem."""
    return (d != NULL and d.version == LMM_VERSION and d.n > 0 and d.p >= 0 and d.q > 0 and d.m > 0 and d.y != NULL
            and (d.X != NULL or d.p == 0) and d.Z != NULL and d.groups != NULL)


cdef Py_ssize_t parameters(const lmm_problem* d) noexcept nogil:
    return d.q if d.diagonal else d.q * (d.q + 1) // 2


cdef void lay_desk(const lmm_problem* d, Desk* desk, Arena* arena) noexcept nogil:
    """Take the work space of all functions."""
    cdef Py_ssize_t p = d.p, q = d.q, k = p + 1, n = parameters(d), m = d.m, lanes = kernels.lanes, pos = 0, i, j
    cdef Py_ssize_t n_h = k * (k + 1) // 2, n_a = q * (q + 1) // 2, n_c = q * k
    cdef Shape shape = make_shape(q, k)
    cdef bint real = arena.base != NULL
    memset(&desk.batch, 0, sizeof(Batch))
    memset(&desk.screen, 0, sizeof(Screen))
    memset(&desk.out, 0, sizeof(Outcome))
    lay_conditioned(p, q, m, &desk.c, arena)
    desk.positions = <Py_ssize_t*> take(arena, 2 * n + q + 1 + q)
    desk.structure = <int*> take(arena, q * q)
    desk.factor = take(arena, 4 * q * q)
    desk.out.theta = take(arena, lanes * n)
    desk.out.params = take(arena, lanes * p)
    desk.out.bse = take(arena, lanes * p)
    desk.out.df = take(arena, lanes * p)
    desk.out.sigma2 = take(arena, lanes)
    desk.out.value = take(arena, lanes)
    desk.out.decrement = take(arena, lanes)
    desk.out.status = <int*> take(arena, lanes)
    desk.out.evaluations = <int*> take(arena, lanes)
    desk.packed = take(arena, (m + lanes - 1) // lanes * shape.stride * lanes)
    desk.between = take(arena, n_h)
    desk.scratch = take(arena, lanes * (4 * q * q + 3 * n_c + 4 * q + 2 * n_a + 2 * n_h + n_c * (n_c + 1) // 2) + k * k)
    desk.H = take(arena, n_h + n_a)
    desk.f.chain.q, desk.f.chain.n_par, desk.f.gls.k = q, n, k
    lay_profile(&desk.f, arena, lanes)
    desk.A = take(arena, m * q * q)
    desk.u = take(arena, m * q)
    desk.batch.q, desk.batch.p, desk.batch.p_full, desk.batch.n_par = q, p, p, n
    desk.batch.n, desk.batch.per_group, desk.batch.reml = PROBLEM_SIZE, 1.0, d.reml != 0
    desk.batch.tolerance, desk.batch.max_iterations = 4e-9, 40
    desk.lanes = take(arena, kernels.problems_size(&desk.batch, &desk.screen, m, 1))
    if not real:
        return
    for j in range(q):
        for i in range(j, j + 1 if d.diagonal else q):
            desk.positions[pos], desk.positions[n + pos] = i, j
            pos += 1
    for i in range(q * q):
        desk.structure[i] = 1 if not d.diagonal or i % (q + 1) == 0 else 0
    desk.batch.row, desk.batch.col, desk.batch.structure = desk.positions, desk.positions + n, desk.structure
    desk.blocks.start = desk.positions + 2 * n
    desk.blocks.correlated = <int*> (desk.blocks.start + q + 1)
    desk.blocks.n_blocks = 1
    desk.blocks.start[0], desk.blocks.start[1] = 0, q
    desk.blocks.correlated[0] = not d.diagonal
    desk.blocks.one_full = not d.diagonal
    desk.screen.one_full = not d.diagonal


cdef Arena arena_of(void* work) noexcept nogil:
    """The caller's memory, from a boundary of cache lines on."""
    return Arena(<double*> ((<uintptr_t> work + 63) & ~(<uintptr_t> 63)), 0)


cdef size_t lmm_work_size(const lmm_problem* problem) noexcept nogil:
    cdef Desk desk
    cdef Arena arena = Arena(NULL, 0)
    if not possible(problem):
        return 0
    lay_desk(problem, &desk, &arena)
    return arena.used * sizeof(double) + 64


cdef int prepare(const lmm_problem* d, Desk* desk, void* work) noexcept nogil:
    """Lay out the work space and condition the problem; LMM_LEFT where that takes more, 1 otherwise."""
    cdef Arena arena = arena_of(work)
    cdef ProblemRows rows
    cdef Py_ssize_t i
    if not possible(d):
        return LMM_REFUSED
    lay_desk(d, desk, &arena)
    for i in range(d.n):
        if not (0 <= d.groups[i] < d.m and isfinite(d.y[i])):
            return LMM_REFUSED
        if d.weights != NULL and not (d.weights[i] > 0.0 and isfinite(d.weights[i])):
            return LMM_REFUSED
    rows.n, rows.m = d.n, d.m
    rows.X, rows.Z, rows.y, rows.codes = d.X if d.p > 0 else d.y, d.Z, d.y, d.groups
    rows.weights, rows.offset = d.weights, d.offset
    rows.x_row, rows.x_column, rows.z_row, rows.z_column, rows.y_row = d.p, 1, d.q, 1, 1
    return 1 if condition_problem(&rows, &desk.blocks, d.reml != 0, &desk.c) else LMM_LEFT


cdef void natural_theta(const lmm_problem* d, Desk* desk, const double* theta) noexcept nogil:
    """theta in the caller's units from that of the conditioned problem."""
    cdef Py_ssize_t q = d.q, n = parameters(d), i, j, l
    cdef double t
    cdef double* inner = desk.factor
    cdef double* F = inner + q * q
    cdef double* L = F + q * q
    for i in range(q * q):
        inner[i] = 0.0
    for i in range(n):
        inner[desk.batch.row[i] * q + desk.batch.col[i]] = theta[i]
    for i in range(q):
        for j in range(q):
            t = 0.0
            for l in range(q):
                t += desk.c.z_map[i * q + l] * inner[l * q + j]
            F[i * q + j] = t
    if d.diagonal:
        for i in range(q):
            t = 0.0
            for l in range(q):
                t += F[i * q + l] * F[i * q + l]
            d.theta[i] = sqrt(t)
        return
    lower(q, q, F, L)
    for i in range(n):
        d.theta[i] = L[desk.batch.row[i] * q + desk.batch.col[i]]


cdef int lmm_fit(lmm_problem* problem, void* work) noexcept nogil:
    cdef Desk desk
    cdef Py_ssize_t i
    cdef int status = prepare(problem, &desk, work)
    if status == LMM_REFUSED and not possible(problem):
        return LMM_REFUSED
    for i in range(problem.p):
        problem.beta[i] = problem.std_error[i] = problem.df[i] = NAN
    for i in range(parameters(problem)):
        problem.theta[i] = NAN
    problem.sigma2 = problem.criterion = NAN
    problem.rank = problem.evaluations = 0
    problem.status = status if status != 1 else LMM_LEFT
    if status != 1:
        return status
    kernels.problems_fit(&desk.batch, &desk.c.sums, &desk.screen, 1, &desk.out, desk.lanes)
    problem.rank, problem.evaluations = desk.c.sums.rank, desk.out.evaluations[0]
    if desk.out.status[0] <= 0:
        return LMM_LEFT
    for i in range(problem.p):
        if not desk.c.left_out[i]:
            problem.beta[i] = desk.out.params[i]
            problem.std_error[i] = desk.out.bse[i]
            problem.df[i] = desk.out.df[i]
    natural_theta(problem, &desk, desk.out.theta)
    problem.sigma2, problem.criterion = desk.out.sigma2[0], desk.out.value[0]
    problem.status = desk.out.status[0]
    return problem.status


cdef void natural_factor(const lmm_problem* d, const double* theta, double* L) noexcept nogil:
    """Lambda (q, q) in the caller's units."""
    cdef Py_ssize_t q = d.q, i, j, pos = 0
    for i in range(q * q):
        L[i] = 0.0
    for j in range(q):
        for i in range(j, j + 1 if d.diagonal else q):
            L[i * q + j] = theta[pos]
            pos += 1


cdef bint solve_square(Py_ssize_t n, double* M, double* B) noexcept nogil:
    """B (n, n) <- M^-1 B by elimination with row pivots; False where M is singular."""
    cdef Py_ssize_t i, j, l, best
    cdef double t
    for j in range(n):
        best = j
        for i in range(j + 1, n):
            if fabs(M[i * n + j]) > fabs(M[best * n + j]):
                best = i
        if M[best * n + j] == 0.0:
            return False
        for l in range(n):
            t = M[j * n + l]
            M[j * n + l] = M[best * n + l]
            M[best * n + l] = t
            t = B[j * n + l]
            B[j * n + l] = B[best * n + l]
            B[best * n + l] = t
        for i in range(n):
            if i == j:
                continue
            t = M[i * n + j] / M[j * n + j]
            for l in range(n):
                M[i * n + l] -= t * M[j * n + l]
                B[i * n + l] -= t * B[j * n + l]
    for j in range(n):
        t = 1.0 / M[j * n + j]
        for l in range(n):
            B[j * n + l] *= t
    return True


cdef double lmm_criterion(const lmm_problem* problem, const double* theta, void* work) noexcept nogil:
    cdef Desk desk
    cdef Py_ssize_t q = problem.q if problem != NULL else 0, k = problem.p + 1 if problem != NULL else 0, i
    cdef Py_ssize_t n_h = k * (k + 1) // 2, lane
    cdef double logdet
    cdef Shape shape
    cdef RawGroups raw
    cdef PackedGroups groups
    cdef Sums sums
    cdef double* M
    if prepare(problem, &desk, work) != 1:
        return NAN
    # the factor of the conditioned effects, any square one
    natural_factor(problem, theta, desk.factor)
    M = desk.factor + q * q
    for i in range(q * q):
        M[i] = desk.c.z_map[i]
    if not solve_square(q, M, desk.factor):
        return NAN
    shape = make_shape(q, k)
    raw = RawGroups(problem.m, desk.c.raw, desk.c.Tz, desk.c.Tx)
    memset(desk.between, 0, n_h * sizeof(double))
    kernels.factor(&shape, &raw, desk.packed, desk.between, desk.scratch)
    within_products(k, desk.c.S, desk.c.Tx, desk.between, desk.scratch, desk.H)
    for i in range(problem.p):
        if desk.c.left_out[i]:
            desk.H[i * (i + 1) // 2 + i] = 1.0
    groups = PackedGroups(shape, (problem.m + kernels.lanes - 1) // kernels.lanes, True, desk.packed)
    memset(&sums, 0, sizeof(Sums))
    sums.sum_n, sums.sum_h = desk.H + n_h, desk.H
    logdet = kernels.moments(&groups, desk.factor, &sums, desk.scratch)
    desk.f.gls.reml = problem.reml != 0
    for lane in range(kernels.lanes):
        desk.f.gls.nu[lane], desk.f.gls.logdet[lane] = desk.c.sums.nu, logdet
        for i in range(n_h):
            desk.f.gls.H[i * kernels.lanes + lane] = desk.H[i]
    kernels.profile_value(&desk.f, 0)
    return desk.f.gls.value[0] + desk.c.sums.offset


cdef int lmm_solve(const lmm_problem* problem, const double* theta, const double* v, double* out, void* work
                   ) noexcept nogil:
    cdef Desk desk
    cdef Arena arena = arena_of(work)
    cdef Py_ssize_t n, q, i, a, b, g
    cdef double w, t
    cdef const double* z
    cdef double* A
    cdef double* M
    if not possible(problem) or v == NULL or out == NULL:
        return LMM_REFUSED
    n, q = problem.n, problem.q
    lay_desk(problem, &desk, &arena)
    natural_factor(problem, theta, desk.factor)
    memset(desk.A, 0, problem.m * q * q * sizeof(double))
    memset(desk.u, 0, problem.m * q * sizeof(double))
    for i in range(n):
        g = problem.groups[i]
        if not 0 <= g < problem.m:
            return LMM_REFUSED
        w = problem.weights[i] if problem.weights != NULL else 1.0
        z = problem.Z + i * q
        A = desk.A + g * q * q
        for a in range(q):
            desk.u[g * q + a] += w * z[a] * v[i]
            for b in range(q):
                A[a * q + b] += w * z[a] * z[b]
    # V^-1 = W - W Z M Z'W by groups, M = L (I + L'AL)^-1 L'
    M = desk.factor + q * q
    for g in range(problem.m):
        if not conditional_covariance(q, desk.A + g * q * q, desk.factor, M, M + q * q) > 0.0:
            return LMM_REFUSED
        for a in range(q):
            t = 0.0
            for b in range(q):
                t += M[a * q + b] * desk.u[g * q + b]
            desk.A[g * q * q + a] = t
    for i in range(n):
        w = problem.weights[i] if problem.weights != NULL else 1.0
        t = v[i]
        for a in range(q):
            t -= problem.Z[i * q + a] * desk.A[problem.groups[i] * q * q + a]
        out[i] = w * t
    return 0


# What C finds behind the capsule.
cdef struct Table:
    int version
    size_t (*work_size)(const lmm_problem*) noexcept nogil
    int (*fit)(lmm_problem*, void*) noexcept nogil
    double (*criterion)(const lmm_problem*, const double*, void*) noexcept nogil
    int (*solve)(const lmm_problem*, const double*, const double*, double*, void*) noexcept nogil

cdef Table table
table.version = LMM_VERSION
table.work_size = lmm_work_size
table.fit = lmm_fit
table.criterion = lmm_criterion
table.solve = lmm_solve


def capsule():
    """The functions as C pointers: a capsule named "fastlmm_core.lmm" of a struct with the version and, in this order,
    lmm_work_size, lmm_fit, lmm_criterion and lmm_solve."""
    return PyCapsule_New(&table, b"fastlmm_core.lmm", NULL)


def addresses():
    """Addresses of the functions, by name, for ctypes and numba."""
    return {
        "lmm_work_size": <uintptr_t> table.work_size, "lmm_fit": <uintptr_t> table.fit,
        "lmm_criterion": <uintptr_t> table.criterion, "lmm_solve": <uintptr_t> table.solve,
    }

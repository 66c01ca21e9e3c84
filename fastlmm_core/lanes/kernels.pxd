# Types shared by the lane kernels and their callers.
from libc.stdint cimport int64_t
from fastlmm_core.lanes.deletions cimport refit_t
from fastlmm_core.small.arena cimport Arena, take
from fastlmm_core.small.chain cimport Chain, Gls

# A block of packed groups, and a vector of any work space, has as many lanes as the variant in use: LANES inside
# the lane kernels, LaneKernels.lanes outside.
cdef extern from "vector.h":
    ctypedef double vec
    ctypedef double vecu

# Blocks of packed groups whose sums are taken in one go: those of all parts are added in order, whoever takes them.
cdef enum:
    PART = 256

# What the lane kernels need to know of a model's shape.
cdef struct Shape:
    Py_ssize_t q        # random effects per group
    Py_ssize_t k        # columns of [X y]: p + 1
    Py_ssize_t n_a      # q (q + 1) / 2
    Py_ssize_t n_c      # q k
    Py_ssize_t stride   # vectors per block of packed groups: n_a + n_c + 1

cdef inline Shape make_shape(Py_ssize_t q, Py_ssize_t k) noexcept nogil:
    cdef Shape shape
    shape.q = q
    shape.k = k
    shape.n_a = q * (q + 1) // 2
    shape.n_c = q * k
    shape.stride = shape.n_a + shape.n_c + 1
    return shape

cdef extern from *:
    """
    /* two factors are one pattern when all entries agree to this many units of the largest */
    #define SAME 1e-13
    """
    double SAME

# Cross-products of groups, and the columns to which they are rotated.
cdef struct RawGroups:
    Py_ssize_t n_groups
    const double* raw       # (n_groups, n_a + q k + 1) A, C and the row count (see rows/rows.pyx)
    const double* Tz        # upper triangular (q, q)
    const double* Tx        # upper triangular (k, k); NULL for the identity

# Factored groups.
cdef struct PackedGroups:
    Shape shape
    Py_ssize_t n_blocks
    bint uniform            # all counts are 1 (or padding)
    const double* packed    # (n_blocks, stride, LANES)

# Sums over groups; all of numbers but `store`.
cdef struct Sums:
    double* sum_n           # (n_a,) set to sum n_i N_i
    double* sum_h           # (k(k+1)/2,) sum D'D is added, unless `root` is given
    double* gram            # packed lower triangle of q k: set to sum vec(E_i) vec(E_i)'; NULL where not wanted
    double* store           # (n_blocks, n_a + q k, LANES) N_i and E_i for the second sweep; NULL where not wanted
    double* root            # (n_blocks, q k, LANES) D_i, where BLAS takes their products; NULL where not wanted

ctypedef void (*find_range_t)(const int64_t*, Py_ssize_t, int64_t*, int64_t*) noexcept nogil
ctypedef void (*factor_t)(const Shape*, const RawGroups*, double*, double*, double*) noexcept nogil
ctypedef bint (*factor_alike_t)(const Shape*, const RawGroups*, double*, double*, double*) noexcept nogil
ctypedef double (*moments_t)(const PackedGroups*, const double*, const Sums*, double*) noexcept nogil
ctypedef void (*curvature_t)(
    const PackedGroups*, Py_ssize_t, const double*, const double*, double*, double*) noexcept nogil
ctypedef void (*effects_t)(
    const PackedGroups*, const double*, const double*, double*, double*, bint, double*) noexcept nogil


# One evaluation of the profiled criterion, several at a time: everything but the loop over groups.
# All pointers are to vectors.  Inputs are factor, sum_n, gls.H, gls.logdet and, for derivatives,
# gram and tensor; see lanes/profile.pxi.
cdef struct Profile:
    Py_ssize_t n_a, n_c
    Gls gls                 # beta, r^2, the criterion
    Chain chain             # F and its derivatives in theta; all directions of G^ are free
    double* factor          # F (q, q)
    double* sum_n           # sum N_i (n_a)
    double* gram            # sum vec(E_i) vec(E_i)', packed
    double* tensor          # sum B_i (x) N_i (n_a, n_a)
    double* M               # (k, k)
    double* g               # gradient in G^ (q, q)
    double* curve           # Hessian in vech(G^) (n_a, n_a)
    double* jac             # d vech(G^) / d theta (n_a, n_par), and room for the chain rule
    double* directions      # whitened J_D (n_a, k, k)
    double* vectors         # (R_xx^-1 u_D, s_D) (n_a, k)
    double* work            # (n_par,)
    double* grad            # (n_par,)
    double* hess            # (n_par, n_par)

cdef inline void lay_profile(Profile* f, Arena* arena, Py_ssize_t lanes) noexcept nogil:
    """Take the arrays of a profile of given chain.q, gls.k and chain.n_par."""
    cdef Py_ssize_t q = f.chain.q, k = f.gls.k, n = f.chain.n_par, n_a = q * (q + 1) // 2, n_c = q * k
    f.n_a = n_a
    f.n_c = n_c
    f.chain.n_free = n_a
    f.chain.free_row = NULL
    f.chain.free_col = NULL
    f.chain.basis = NULL
    f.chain.axes = NULL
    f.gls.before = NULL
    f.factor = take(arena, lanes * q * q)
    f.gls.nu = take(arena, lanes)
    f.gls.logdet = take(arena, lanes)
    f.sum_n = take(arena, lanes * n_a)
    f.gls.H = take(arena, lanes * (k * (k + 1) // 2))
    f.gram = take(arena, lanes * (n_c * (n_c + 1) // 2))
    f.tensor = take(arena, lanes * n_a * n_a)
    f.gls.chol = take(arena, lanes * k * k)
    f.gls.inverse = take(arena, lanes * k * k)
    f.gls.b = take(arena, lanes * k)
    f.gls.weight = take(arena, lanes * k * k)
    f.M = take(arena, lanes * k * k)
    f.g = take(arena, lanes * q * q)
    f.curve = take(arena, lanes * n_a * n_a)
    f.jac = take(arena, lanes * 2 * max(q * q, n_a * n))
    f.directions = take(arena, lanes * n_a * k * k)
    f.vectors = take(arena, lanes * n_a * k)
    f.work = take(arena, lanes * n)
    f.gls.r2 = take(arena, lanes)
    f.gls.value = take(arena, lanes)
    f.gls.noise = take(arena, lanes)
    f.grad = take(arena, lanes * n)
    f.hess = take(arena, lanes * n * n)


# What a screen of one design has at most.
cdef enum:
    MOST_POINTS = 1024
    MOST_FEATURES = 136     # elements of G^ of 16 effects

# The criterion of all responses of a batch at the same points, see lanes/screen.pxi.
cdef struct SharedScreen:
    Py_ssize_t n_points         # 0 where one minimum only is looked for
    Py_ssize_t n_patterns       # of the groups that are screened
    Py_ssize_t n_columns
    const Py_ssize_t* pattern   # (n_patterns,)
    bint apart                  # whether each of these is one group
    double share                # of all groups
    double nu                   # see Batch; of these groups
    const double* square        # (ceil(n_points / 8), n_patterns n_a + 1, 8) W^-1, packed, off-diagonals twice; 1
    const double* linear        # (ceil(n_points p / 8), n_columns q + p, 8) L_xx^-1 (c_x' W^-1, I), point by point
    const double* constant      # (n_points,) log|V| [+ log|H_xx|]
    double origin               # that where G^ is zero
    const double* half          # (p, p) inverse of the factor of X'X within groups, lower triangular
    Py_ssize_t n_below          # the last points, of which G^ is less than that of the first
    Py_ssize_t near, wide       # neighbours that a valley lies lower than, and where the variation is that of many groups
    const Py_ssize_t* neighbours    # (n_points, wide) the nearest ones first
    const double* features      # (n_points, n_a) logarithms of variances, and `correlation` times correlations
    const double* unit          # (q,) standard deviations are divided by these
    double vanishing, correlation   # variance that is nearly none
    double many                 # groups
    Py_ssize_t lowest           # points that are looked at whether they mark a valley or not
    Py_ssize_t limit            # valleys and lowest points at most
    Py_ssize_t spread           # others, spread evenly over the order of values
    bint of_regular             # whether the only minimum shows where the data are regular, see lanes/regular.pxi

# What all responses of a batch share: the design, in the coordinates of the conditioned problem.
# Groups are sorted by pattern, rows by group.  A pattern of one group has one column, (c_x, c_y) itself; the groups
# of a larger one are rotated so that `columns` of them carry all of c_x, and the rest enter by their sum of squares.
# A point that all responses share, and what a step from it needs, see start.pxi; W = I + R L L'R' of a pattern there.
cdef struct CommonPoint:
    const double* along         # (n_a,) vech(G^)
    const double* inverse       # (n_patterns, q, q) W^-1
    const double* solved        # (n_patterns, q, q) B = R'W^-1
    const double* N             # (n_patterns, q, q) B R
    const double* turned        # (n_columns, q, p) W^-1 c_x
    const double* E             # (n_columns, q, p) B c_x
    const double* half          # (p, p) half'half = (X'V^-1 X)^-1, lower triangular
    const double* trace         # (n_a,) tr(P V_a) for the unit directions of G^
    const double* square        # (n_a, n_a) tr(P V_a P V_b)
    const double* scoring       # (1 + n_a, 1 + n_a) inverse of the expected information of sigma^2 and vech(C), C = sigma^2 G^
    const double* bend          # (1 + n_a, 1 + n_a, 1 + n_a) tr(P V_a P V_b P V_c), or NULL for scoring alone

cdef struct SharedLines

cdef struct Batch:
    Py_ssize_t n, q, p, p_full, m, n_patterns, n_columns, n_par
    const Py_ssize_t* row       # positions of the free elements of L
    const Py_ssize_t* col
    const int* structure        # (q, q): 1 where an element of G is free
    Py_ssize_t n_blocks         # blocks of G that are free, where there are several grouping factors
    const Py_ssize_t* block     # (n_blocks + 1,) first effect of each; NULL where G is one block, or diagonal
    # rows
    const Py_ssize_t* order     # (n,) place of each row in a response, or NULL
    const Py_ssize_t* ahead     # (n,) of these how many follow each other from each on, where `order` is not NULL
    Py_ssize_t length           # numbers in a response, of which some may be left out
    Py_ssize_t anchor           # place of the value that is taken from a response, where `centre`
    const Py_ssize_t* start     # (m + 1,) first row of each group
    const double* basis         # (n, q): w R^-T z_o
    const double* x             # (n, p): w x_o, or NULL where X_o'y follows from the groups
    const double* weights       # (n,) or NULL
    const double* offset        # (n,) or NULL
    bint centre                 # whether X spans a constant, so that responses may be shifted
    # groups and patterns
    const Py_ssize_t* groups    # (n_patterns + 1,) first group of each pattern
    const Py_ssize_t* columns   # (n_patterns + 1,) first column of each pattern
    const double* loading       # (m, most columns of a pattern): rotation, for patterns with a rest
    Py_ssize_t loading_width
    const double* R             # (n_patterns, n_a) rows of the upper triangle
    const double* cx            # (n_columns, q, p)
    const double* within_xx     # packed
    const int* exact            # (p,) columns of X that do not vary within groups
    # criterion
    bint reml
    double nu, per_group
    CommonPoint common          # from which all take their first step
    const double* first_theta   # (., n_par) start of each response, or NULL for the step from the common point
    Py_ssize_t stride_theta     # from one start to the next, 0 where it is the same
    const double* known         # (., n_par) of searches from given starts: a minimum of each response that is known, or NULL
    const double* known_value   # (.,) the criterion there
    double tolerance
    Py_ssize_t max_iterations
    # the way back
    const double* x_map         # (p_full, p)
    const double* ones          # (p_full,): X ones = 1, where `centre`
    double criterion_offset
    # scores in place of responses, see lanes/scores.pxi
    const double* spread        # (n_patterns, n_a) S, lower triangles by rows; NULL where the rows of Y are responses
    const double* within_root   # (p, n_within)
    Py_ssize_t n_within
    double variance             # sigma^2
    bint summed                 # whether the rows of Y are lines of sums, see lanes/sums.pxi
    SharedScreen screen
    const SharedLines* lines    # what problems share that are responses on one design with covariates; NULL for others

# What responses on one design share that have covariates of their own, see lanes/responses_with_covariates.pxi.  Problems are
# conditioned so that Z_o'Z_o = m I; theta and R of the design without covariates stand in other units.
cdef struct SharedLines:
    const Batch* base           # the design without covariates
    Py_ssize_t n_lines          # covariates, and y
    Py_ssize_t factor[4]        # column of X by which each line is multiplied, -1 for none
    const double* times[4]      # (n,) that column, rows sorted by group; NULL for none
    const double* R             # (n_patterns, n_a)
    double unit                 # theta of the problems relative to that of the design without covariates
    double constant             # criterion in the caller's units less that of the conditioned problem, but for scales
    bint balanced, few, alike   # whether groups tell as much, are few, and may be enough of regular data, see `kinds_of`
    bint spanned                # whether lines have nothing in the columns of X, see lanes/balanced_lines.pxi

# Rows of up to LANES responses with covariates that are to be summed, and where the sums go.
cdef struct LinesToRead:
    const double* source[4]     # first value of each line, of the first response
    Py_ssize_t step[4]          # from response to response
    Py_ssize_t count
    double* moments             # vectors, see `line_moments`
    double* map                 # (count, p, p) from conditioned to the caller's coefficients
    double* beta                # (count, p)

cdef inline Py_ssize_t sums_width(const Batch* d) noexcept nogil:
    """Numbers in a line of sums, see lanes/sums.pxi."""
    cdef Py_ssize_t pattern, several = 0
    for pattern in range(d.n_patterns):
        several += d.groups[pattern + 1] - d.groups[pattern] > 1
    return d.n_columns * d.q + several * (d.q * (d.q + 1) // 2) + 2 * d.p + 3

# Results of a batch, one row per response.
cdef struct Outcome:
    double* theta       # (., n_par)
    double* params      # (., p_full)
    double* bse         # (., p_full)
    double* df          # (., p_full) Satterthwaite's degrees of freedom, or NULL
    double* sigma2
    double* value
    double* decrement
    int* status         # 1 certified, 2 certified at the boundary, 0 not, -1 not finite, -2 no variation
    int* evaluations
    bint brief          # fits only: no coefficients, nor what is told of them
    int* chosen         # (count, screen.limit + screen.spread) points to look for other minima from, then -1; or NULL
    double* rise        # (count,) of the criterion to the boundary, by its Hessian; or NULL
    double* values      # (count, n_points) of the screen; or NULL
    double* worth       # (count,) groups that the variation is worth; or NULL
    # Where `rows` is not NULL nothing is fitted: theta is read, and what tests of m linear functions of the coefficients
    # need at it is all that is written (relative to sigma^2, the scale of V profiled out), beside the coefficients, their
    # standard errors and sigma^2 at that theta unless `params` is NULL.
    Py_ssize_t m
    const double* rows  # (m, p) in conditioned coordinates
    double* covariance  # (., m, m) K = rows H_xx^-1 rows'
    double* slope       # (., n_par, m, m) derivative of K in theta
    double* shift       # (., n_par) -(1 / r^2) d r^2 / d theta
    double* hess        # (., n_par, n_par) second derivatives of the criterion in theta

# Cross-products of a problem of its own, and the columns to which they are rotated: Z_o'Z_o = m I, X_o'X_o = I and
# y_o'y_o = PROBLEM_SIZE less what X explains.  A column of X that is left out is zero in Tx and x_map.
cdef struct ProblemSums:
    Py_ssize_t m, rank          # groups; columns of X kept
    const double* raw           # (m, n_a + q k + 1) A, C and the row count (see rows/rows.pyx)
    const double* Tz            # upper triangular (q, q)
    const double* Tx            # upper triangular (k, k)
    const double* S             # (k(k+1)/2,) [X y]'[X y]
    const double* x_map         # (p_full, p)
    const double* base          # (p_full,) coefficients taken from y
    double n, nu                # rows; rows less the rank of X, or rows
    double scale                # by which y was divided
    double offset               # criterion in the caller's units less that of the conditioned problem
    const double* lines         # sums of lines, LANES apart, in place of raw, Tz, Tx and S; see SharedLines

cdef enum:
    PROBLEM_SIZE = 256          # y_o'y_o: the same for all problems

# Points at which criteria are screened for other minima: nearly balanced data, others, and few groups.
cdef struct Screen:
    Py_ssize_t n_points[3]
    Py_ssize_t n_near[3]
    const double* thetas[3]         # (n_points, n_par)
    const Py_ssize_t* near[3]       # (n_points, n_near) the points nearest to each
    # of few groups: starts from valleys and lowest points at most, lowest points, points spread over all, and minima that
    # are narrowed
    Py_ssize_t limit, lowest, spread, narrowed
    bint one_full                   # whether all effects are correlated

# Groups of problems side by side, group by group: the lanes are problems.
cdef struct OwnGroups:
    Py_ssize_t m                # of the problem that has most; the others are filled up with zeros
    double* packed              # (m, n_a + q k) R and c
    double* within              # (k(k+1)/2,)
    double* store               # (m, n_a + q k) N and E for the second sweep
    double* moments             # (n_a,) sum of z'r r'z over groups, r the residual of least squares; (n_a,) of A_aa A_bb
    double* weighted            # (n_a, q p (q p + 1) / 2) sum of N_ab vec(E_x) vec(E_x)'
    double* offset              # (LANES,) see ProblemSums
    double* base                # (LANES, p_full)

# Points at which the criterion of several grouping factors is screened, see lanes/factors.pxi.
cdef struct FactorScreen:
    Py_ssize_t n_points, near
    Py_ssize_t limit, lowest, spread    # points to start from, see SharedScreen
    const double* theta         # (n_points, n_terms)
    const Py_ssize_t* neighbours    # (n_points, near) the nearest ones
    const double* share         # (n_points, n_patterns) s
    const double* half          # (n_points, n_half) M^-1 L_2 of each part, packed lower triangles by rows
    Py_ssize_t n_half
    const double* half_x        # (n_points, n_core, p) M^-1 L_2 B_2x
    const double* half_xx       # (n_points, p(p+1)/2) L_xx^-1, packed
    const double* constant      # (n_points,) log|V| [+ log|H_xx|]

# What responses share where there are several grouping factors, see lanes/factors.pxi.  Rows are whitened.
cdef struct FactorDesign:
    Py_ssize_t n, n_terms, n_leaves, n_core, n_parts, n_patterns, widest
    # rows
    const double* x             # (n, p)
    const double* root          # (n,) square roots of the weights, or NULL
    const Py_ssize_t* leaf      # (n,)
    const double* unit          # (n,) u
    const Py_ssize_t* entry     # (n + 1,) first place of each row's core effects in
    const Py_ssize_t* slot
    const double* value
    # leaves
    const Py_ssize_t* leaf_part     # (n_leaves,)
    const Py_ssize_t* leaf_piece    # (n_leaves,) among the pieces of its part
    const Py_ssize_t* leaf_at       # (n_leaves,) first place in
    const double* leaf_core         # c with the core of its part
    const double* leaf_x            # (n_leaves, p)
    # patterns
    const double* size          # (n_patterns,) a
    const double* count         # (n_patterns,) leaves
    const double* within_xx     # (p(p+1)/2,) packed
    const double* pattern_xx    # (p(p+1)/2, n_patterns) sum of c_x'c_x
    # parts
    const Py_ssize_t* core      # (n_parts + 1,) first effect of each
    const Py_ssize_t* term      # (n_core,) its term, 1 and above
    const Py_ssize_t* piece     # (n_parts + 1,) first piece of each
    const Py_ssize_t* pattern   # (pieces,)
    const Py_ssize_t* square_at     # (n_parts + 1,) first place in
    const double* within_cc     # packed lower triangles
    const Py_ssize_t* cc_at     # (n_parts,) first place in
    const double* piece_cc      # (J(J+1)/2, pieces) by part
    const double* within_cx     # (n_core, p)
    const Py_ssize_t* piece_at  # (n_parts + 1,) sum of J pieces, first place in
    const double* piece_cx      # (J, p, pieces) by part
    FactorScreen screen

# What responses share where effects of several grouping factors may be correlated, see lanes/correlated.pxi.  Rows are
# whitened; the leaves' effects are the last ones of a level's, the levels of a part of the core follow each other.
cdef struct CorrelatedDesign:
    Py_ssize_t n, n_factors, n_leaves, n_core, n_parts
    Py_ssize_t q_leaf, n_slots  # effects of a leaf, and of the other levels of a row
    double large                # variance of a level, relative to that of its mean, that is left to single fits
    Py_ssize_t widest, most     # effects of the core, and of the core with its leaves, in the largest part
    const Py_ssize_t* column    # (n_factors + 1,) first effect of each factor
    # rows
    const double* x             # (n, p)
    const double* root          # (n,) square roots of the weights, or NULL
    const Py_ssize_t* leaf      # (n,)
    const double* unit          # (n, q_leaf) orthonormal columns of the leaves' Z
    const Py_ssize_t* slot      # (n, n_slots) effects of the core
    const double* value         # (n, n_slots)
    # leaves, those of a part one after the other
    const double* R             # (n_leaves, q_leaf (q_leaf + 1) / 2) rows of the upper triangle
    const Py_ssize_t* leaf_at   # (n_leaves,) first place in
    const double* leaf_core     # c with the core of the part (q_leaf, J)
    const double* leaf_x        # (n_leaves, q_leaf, p)
    const double* within_xx     # (p(p+1)/2,) packed
    # parts
    const Py_ssize_t* core      # (n_parts + 1,) first effect of the core
    const Py_ssize_t* leaves    # (n_parts + 1,) first leaf
    const Py_ssize_t* effects   # (n_parts + 1,) effects of all parts before
    const Py_ssize_t* square    # (n_parts + 1,) sums of effects J
    const Py_ssize_t* factor    # (n_core,) of each effect
    const Py_ssize_t* tail      # (n_core,) where its level ends, in the part
    const Py_ssize_t* square_at     # (n_parts,) first place in
    const double* within_cc     # packed lower triangles
    const double* within_cx     # (n_core, p)
    # of searches from given starts: minima that are known of each response, or NULL
    const double* known         # (., n_par)
    const double* known_value   # (.,) the criterion there
    # its tables: share (n_points, n_leaves, q_leaf (q_leaf + 1) / 2), see correlated_fits.pxi; half (n_points, n_half), rows of
    # each part (J, effects); half_xx (n_points, p, n_effects + p)
    FactorScreen screen

# What tests of fixed effects need along the n directions D_k of V that are parameters, see lanes/factors.pxi and
# lanes/problems.pxi; of X only.
cdef struct DesignMoments:
    double* half        # (count, p, p) L_xx^-1
    double* trace       # (count, n) tr(V^-1 D_k)
    double* square      # (count, n (n + 1) / 2) tr(V^-1 D_k V^-1 D_l)
    double* cross       # (count, n, p, p) X'V^-1 D_k V^-1 X
    double* both        # (count, n (n + 1) / 2, p, p) X'V^-1 D_k V^-1 D_l V^-1 X, k >= l, or its transpose

# What tests of fixed effects need along the n directions D_k of V that are parameters, see lanes/correlated.pxi.
cdef struct CorrelatedMoments:
    DesignMoments of
    Py_ssize_t n
    const Py_ssize_t* row       # (n,) effects of each direction, row >= col
    const Py_ssize_t* col

ctypedef Py_ssize_t (*factors_size_t)(const Batch*, const FactorDesign*) noexcept nogil
ctypedef void (*factors_fit_t)(
    const Batch*, const FactorDesign*, const double*, Py_ssize_t, Py_ssize_t, const Outcome*, double*) noexcept nogil
ctypedef void (*factors_moments_t)(
    const Batch*, const FactorDesign*, const double*, Py_ssize_t, const DesignMoments*, double*) noexcept nogil
ctypedef Py_ssize_t (*correlated_size_t)(const Batch*, const CorrelatedDesign*, bint) noexcept nogil
ctypedef void (*correlated_fit_t)(
    const Batch*, const CorrelatedDesign*, const double*, Py_ssize_t, Py_ssize_t, const Outcome*, double*) noexcept nogil
ctypedef void (*correlated_moments_t)(
    const Batch*, const CorrelatedDesign*, const double*, Py_ssize_t, const CorrelatedMoments*, double*) noexcept nogil
ctypedef Py_ssize_t (*batch_size_t)(const Batch*) noexcept nogil
ctypedef void (*batch_sum_t)(const Batch*, const double*, Py_ssize_t, const Py_ssize_t*, Py_ssize_t, double*, double*
                             ) noexcept nogil
ctypedef void (*batch_fit_t)(const Batch*, const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const Outcome*, double*
                             ) noexcept nogil
ctypedef Py_ssize_t (*problems_size_t)(const Batch*, const Screen*, Py_ssize_t, Py_ssize_t) noexcept nogil
ctypedef void (*problems_fit_t)(
    const Batch*, const ProblemSums*, const Screen*, Py_ssize_t, const Outcome*, double*) noexcept nogil
ctypedef void (*problems_moments_t)(
    const Batch*, const ProblemSums*, const Screen*, const double*, const Py_ssize_t*, Py_ssize_t,
    const DesignMoments*, double*) noexcept nogil
ctypedef Py_ssize_t (*lines_size_t)(const Batch*) noexcept nogil
ctypedef void (*lines_read_t)(const Batch*, const LinesToRead*, ProblemSums*, int*, double*) noexcept nogil
ctypedef void (*profile_t)(Profile*, int) noexcept nogil

# A stage of factors nested in each other, see lanes/families.pxi.  Its levels stand in blocks of families: lane l of the vectors
# of a block holds the children of one parent.
cdef struct ChainStage:
    Py_ssize_t level            # 0 for the finest
    Py_ssize_t n_blocks
    Py_ssize_t stride           # vectors in a record, not of the finest stage
    const Py_ssize_t* start     # (n_blocks + 1,) first vector of each block
    const Py_ssize_t* parent    # (n_blocks, LANES) where the record of the parent begins in `above`; NULL at the top
    const double* packed        # the finest stage: R, c and a count
    double* record              # n, E; of the others A, C; R, c; n, E; M, P, Q, u, f, then A_F and R_F of finer stages
    double* above               # records of the next stage
    Py_ssize_t above_q          # Q and u in them
    Py_ssize_t above_sums       # A_F and R_F in them

# What a sweep down the stages is asked for, and where the sums of a stage go.
cdef struct ChainSums:
    Py_ssize_t first            # column of `weight` before which it is zero
    bint second                 # whether gram and curve are wanted
    bint traces                 # whether B has the part -N
    Py_ssize_t forms            # first column of f that counts in B
    const double* weight        # w (k, k), upper triangular: f = E w
    double* n                   # sum N (n_a)
    double* f                   # sum f f' (n_a)
    double* gram                # sum vec(E) vec(E)', packed
    double* curve               # tr(B D N F) over the unit directions of this stage and finer ones, lower triangle

# Columns that the levels are written in.
cdef struct ChainColumns:
    const double* z             # upper triangular (q, q)
    const double* xy            # (k, k)

ctypedef void (*chain_pack_t)(
    const Shape*, Py_ssize_t, const Py_ssize_t*, const double*, const ChainColumns*, double*, double*, double*
    ) noexcept nogil
ctypedef double (*chain_up_t)(const Shape*, const ChainStage*, const double*, double*, double*) noexcept nogil
ctypedef void (*chain_down_t)(const Shape*, const ChainStage*, const double*, const ChainSums*, double*) noexcept nogil
ctypedef void (*chain_second_t)(const Shape*, const ChainStage*, const ChainSums*, double*) noexcept nogil

# The subjects of series, see lanes/series.pxi: their sizes, and what a sweep leaves for the next.
cdef struct SeriesWork:
    Py_ssize_t m, q, c, k       # subjects, columns of Z and of [X y], parameters of residuals
    Py_ssize_t n_g              # unit directions of G
    Py_ssize_t n_blocks         # of LANES subjects
    const Py_ssize_t* unit      # (n_g, 2) row and column of each
    const double* G             # (q, q)
    # vectors (n_blocks, .)
    double* Y                   # (q, q)
    double* D                   # (q, c)
    double* N                   # (q, q)
    double* T                   # (q, q)
    double* Q                   # (q, c)
    double* E                   # (k, q, c)
    double* dAz                 # (k, q, q) columns of Z of the derivatives
    double* work                # see `series_room`

cdef inline Py_ssize_t series_room(Py_ssize_t q, Py_ssize_t c, Py_ssize_t k, Py_ssize_t n_g) noexcept nogil:
    """Vectors of work space."""
    return 6 * (q + 1) * (q + c) + 2 * (k + 1) * (q * q + 1) + k * k * (c + 1) + (n_g + k + 1) * (c * c + n_g)

# Sums over subjects; what `series_weigh` finds lies one after the other from sum_n on.
cdef struct SeriesSums:
    const double* turn          # C (c, c)
    const double* dA            # (k, m, q, K)
    const double* ddA           # (k, k, m, q, K)
    double* sum_n               # (q, q) N; (k,) tr(P A_a); (k, k) tr(P A_ab - P A_a P A_b) and (k, k, c) diagonal of
                                # d2H, lower triangles of pairs; (n_g, c, c) Q'D Q; (k, c, c) U'A_a U

ctypedef double (*series_reduce_t)(const SeriesWork*, const double*, double*) noexcept nogil
ctypedef void (*series_weigh_t)(const SeriesWork*, const SeriesSums*) noexcept nogil
ctypedef void (*series_along_t)(const SeriesWork*, const double*, double*) noexcept nogil

# What a variant of the lane kernels offers.  `kernels()` of its module gives the address in a capsule of this name.
cdef struct LaneKernels:
    Py_ssize_t lanes
    find_range_t find_range
    factor_t factor
    factor_alike_t factor_alike
    moments_t moments
    curvature_t curvature
    effects_t effects
    profile_t profile_value
    profile_t profile_second
    batch_size_t batch_size
    batch_sum_t batch_sum
    batch_fit_t batch_fit
    problems_size_t problems_size
    problems_fit_t problems_fit
    problems_moments_t problems_moments
    lines_size_t lines_moments
    lines_size_t lines_size
    lines_read_t lines_read
    factors_size_t factors_size
    factors_fit_t factors_fit
    factors_moments_t factors_moments
    correlated_size_t correlated_size
    correlated_fit_t correlated_fit
    correlated_moments_t correlated_moments
    chain_pack_t chain_pack
    chain_up_t chain_up
    chain_down_t chain_down
    chain_second_t chain_second
    refit_t refit
    series_reduce_t series_reduce
    series_weigh_t series_weigh
    series_along_t series_along

cdef inline const char* lane_kernels_name() noexcept nogil:
    return b"fastlmm_core.LaneKernels"

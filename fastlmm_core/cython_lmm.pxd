# Linear mixed models of one grouping factor for callers without the interpreter: Cython, C and numba.
#
# A problem is a struct of pointers to the caller's arrays.  Functions take no lock, raise nothing and allocate nothing
# but in the work space that the caller gives, so that threads may call them side by side, each with a work space of its
# own.  The struct grows at its end only; `version` says how much of it the caller knows.
#
#     cimport fastlmm_core.cython_lmm as lmm
#
#     cdef lmm.lmm_problem problem
#     memset(&problem, 0, sizeof(problem))
#     problem.version = lmm.LMM_VERSION
#     ...
#     work = malloc(lmm.lmm_work_size(&problem))
#     status = lmm.lmm_fit(&problem, work)
#
# See docs: "Calling the kernels".
from libc.stddef cimport size_t
from libc.stdint cimport int64_t

cdef enum:
    LMM_VERSION = 1
    LMM_CERTIFIED = 1           # the optimum is certified
    LMM_BOUNDARY = 2            # certified, with a singular covariance
    LMM_LEFT = 0                # not certified, or a problem that takes more than this: fit it by LinearMixedModel
    LMM_REFUSED = -1            # another version, sizes or pointers that cannot be, or values that are not finite

ctypedef struct lmm_problem:
    int version                 # LMM_VERSION
    int reml                    # 1 for REML, 0 for ML
    int diagonal                # 1 for independent random effects
    int status                  # written, as returned
    int64_t n                   # rows
    int64_t p                   # columns of X
    int64_t q                   # columns of Z
    int64_t m                   # groups
    const double* y             # (n,)
    const double* X             # (n, p) by rows
    const double* Z             # (n, q) by rows
    const int64_t* groups       # (n,) 0 to m - 1, all of which occur
    const double* weights       # (n,) or NULL
    const double* offset        # (n,) or NULL
    double* beta                # (p,) written: coefficients, NaN for columns left out
    double* std_error           # (p,) written
    double* df                  # (p,) written: Satterthwaite's degrees of freedom
    double* theta               # (k,) written: lower triangle of Lambda by columns (or its diagonal), as lme4
    double sigma2               # written
    double criterion            # written: -2 log-likelihood, restricted by REML
    int64_t rank                # written: columns of X kept
    int64_t evaluations         # written

# Bytes of work space for the functions below, 0 for a problem that is refused.
cdef size_t lmm_work_size(const lmm_problem* problem) noexcept nogil

# Fit; writes what is said above.  Returns the status.
cdef int lmm_fit(lmm_problem* problem, void* work) noexcept nogil

# The criterion at theta (k,); infinite where it is not defined, NaN where the problem is refused or left.
cdef double lmm_criterion(const lmm_problem* problem, const double* theta, void* work) noexcept nogil

# out (n,) = V^-1 v, V = diag(1 / weights) + Z Lambda Lambda' Z' relative to sigma^2.  Returns 0, or LMM_REFUSED.
cdef int lmm_solve(const lmm_problem* problem, const double* theta, const double* v, double* out, void* work
                   ) noexcept nogil

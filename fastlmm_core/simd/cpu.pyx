# cython: language_level=3
"""Which of the compiled variants of the lane kernels this CPU can run."""

cdef extern from *:
    """
    #if !defined(BASE_ONLY) && (defined(__GNUC__) || defined(__clang__))
    static int runs_avx2(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    static int runs_avx512(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int runs_avx2(void) { return 0; }
    static int runs_avx512(void) { return 0; }
    #endif
    """
    int runs_avx2()
    int runs_avx512()


def variants():
    """Names of the variants that run here, best first."""
    found = ["base"]
    if runs_avx2():
        found.insert(0, "avx2")
        if runs_avx512():
            found.insert(0, "avx512")
    return found

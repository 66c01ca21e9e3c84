# One allocator for every work space.  A space is described once, by a function that takes its parts from an arena:
# called on an arena without memory it counts, `furnish` then provides what was counted, and a second call hands it out.
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc

cdef enum:
    CACHE_LINE = 8  # doubles; vectors that straddle two lines are slow to store and load again


cdef struct Arena:
    double* base        # on a cache line; NULL while parts are counted
    Py_ssize_t used     # doubles


cdef inline double* take(Arena* arena, Py_ssize_t n) noexcept nogil:
    """Room for n doubles, beginning on a cache line; NULL while parts are counted."""
    cdef double* place = NULL
    if arena.base != NULL:
        place = arena.base + arena.used
    arena.used += (n + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    return place


cdef inline double* furnish(Arena* arena) noexcept nogil:
    """Memory (zeros) for what was counted, which is to be taken next; to be freed by the caller,
    NULL where there is none."""
    cdef double* memory = <double*> calloc(arena.used + CACHE_LINE, sizeof(double))
    refurnish(arena, memory)
    return memory


cdef inline void refurnish(Arena* arena, double* memory) noexcept nogil:
    """Take what comes next from memory that `furnish` has given for as much before."""
    if memory != NULL:
        arena.base = <double*> ((<uintptr_t> memory + 63) & ~(<uintptr_t> 63))
    arena.used = 0

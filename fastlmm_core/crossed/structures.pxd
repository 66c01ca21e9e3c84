# What the engine of crossed factors works on; the order of elimination is described at the head of elimination.pxi.
#
# gives  Level, Stage, Tail, Sparse, Elimination, Reach, Panel, Target, Matrix, Pairs

cdef enum:
    MAX_FACTORS = 16
    WIDE = 3            # columns of a factor from which products with its panels go to BLAS
    SMALL = 40          # rows of a matrix up to which plain loops do better than LAPACK and its threads

# The levels of one factor.
cdef struct Level:
    Py_ssize_t m, q, column
    const Py_ssize_t* at        # (m,) first slot

cdef struct Stage:
    Py_ssize_t m, q, qc         # levels, columns, columns of the coarser factors of the chain
    Py_ssize_t column           # first column of the factor in Lambda
    Py_ssize_t slot             # first row in arrays over all levels
    const Py_ssize_t* parent    # (m,) level of the next stage; NULL at the last
    const Py_ssize_t* comp      # (m,) component of the tail
    const Py_ssize_t* start     # (m + 1,)
    const int* nbr              # slots of the tail neighbours within their component, ascending
    const Py_ssize_t* skip      # (m,) how many of them come before the core
    const int* up               # their places in the parent's list
    double* own0                # (m, q, q): as given
    double* chain0              # (m, q, qc)
    double* panel0              # (q, width) for each level
    double* own                 # the same with finer levels eliminated
    double* chain
    double* panel
    double* mid                 # (m, q, q) M_a
    double* proj                # (m, q, q) P_a
    double* cov                 # (m, q, q), (m, q, qc) and like panel: posterior covariances; NULL for the finest
    double* cov_chain
    double* cov_panel
    double* factor              # L (q, q)
    double* G
    # levels by tail slot: of the sparse levels, and of the cores where this is the only factor of the chain, with one
    # column, so that one row of the cores' matrices after the other is worked on
    const Py_ssize_t* back      # (n_tail + 1,); NULL where neither is the case
    const Py_ssize_t* entry     # place in nbr
    const Py_ssize_t* level
    bint rowwise                # the latter
    double* whole               # (m q, n_tail) products with the only core, and work space like it,
                                # where all levels are
    double* product             # worked on at a time; NULL elsewhere
    double* quad                # (m, q, q) B Q B': all of it, or what the sparse levels give; NULL elsewhere
    double* reach               # like panel: B Q from the sparse levels, where that is wanted too

cdef struct Tail:
    Py_ssize_t m, q, column
    const Py_ssize_t* slot      # (m,) within the component
    const Py_ssize_t* core      # (m,) within its core, -1 for a sparse level
    const Py_ssize_t* comp
    const Py_ssize_t* start     # neighbours among the tail factors after this one
    const int* nbr              # slots within the component
    double* own0
    double* panel0
    double* factor
    double* G
    double* lift                # (q, q): L^-T on the directions in which L is far from singular
    double* rest                # (q, q): projector on the others
    double* basis               # (q, q): its first columns are an orthonormal basis of them
    Py_ssize_t n_rest           # how many there are
    bint exact                  # whether there are any

cdef struct Sparse:
    Py_ssize_t n                # levels, in the order of their elimination
    const Py_ssize_t* tail
    const Py_ssize_t* comp
    const Py_ssize_t* slot      # (n,) within the component
    const Py_ssize_t* start     # (n + 1,)
    const int* nbr              # slots of later neighbours within the component, ascending
    const Py_ssize_t* skip      # (n,) how many of them come before the core
    const Py_ssize_t* own_at    # (n,) places in own, mid, proj, cov
    const Py_ssize_t* panel_at  # (n,) places in panel, reach, cov_panel
    Py_ssize_t n_own, n_panel
    double* own0
    double* panel0
    double* own
    double* panel
    double* mid
    double* proj
    double* cov
    double* cov_panel           # first B Q, then the covariances with the neighbours
    const Py_ssize_t* back      # sparse levels by tail slot, as in Stage
    const Py_ssize_t* entry
    const Py_ssize_t* level
    int* where                  # (largest component,) place of a slot in the list at hand

cdef struct Elimination:
    Py_ssize_t n_stages, n_tails, n_comps, n_slots, tail_slot, width
    Py_ssize_t wide             # columns of right-hand sides, at most
    Stage stage[MAX_FACTORS]
    Tail tail[MAX_FACTORS]
    Sparse sparse
    const Py_ssize_t* comp_slot     # (n_comps + 1,) first slot of each component
    const Py_ssize_t* core_slot     # (n_comps,) first slot of its core
    const Py_ssize_t* core_size     # (n_comps,)
    const Py_ssize_t* comp_start    # (n_comps,) into the dense arrays
    const Py_ssize_t* comp_block    # (n_comps + 1,) into the next two: factor and place of the levels in each core
    const Py_ssize_t* block_tail
    const Py_ssize_t* block_slot
    Py_ssize_t n_dense
    Py_ssize_t slots_of_cores   # columns of all cores
    double* K                   # the cores
    double* S                   # Cholesky factors: in the place of K,
                                # unless that is wanted again as L is nearly singular
    double* second              # room for S beside K; NULL until it is wanted
    double* cov                 # posterior covariances: in the place of S,
                                # of which the other triangle then holds as much
    bint inverted               # as solutions need, R_ij / R_jj; whether it does
    double* pivot               # (n_tail,) 1 / R_jj, then
    Py_ssize_t widest           # columns of a factor of the tail, at most
    double* precision           # (n_tail, widest) N_bb of the levels in cores, left-justified, once `inverted`
    double* work                # like the largest core: only where L is nearly singular
    double* scratch
    double* partial             # (k, k)
    double* block               # (widest, the larger of widest and columns),
                                # NULL where all factors of the chain are narrow
    int* place
    Py_ssize_t jobs             # threads that share the work on a large core

# What a level of the chain touches: its ancestors in the coarser factors of the chain, and levels of the tail.
cdef struct Reach:
    Py_ssize_t ancestor[MAX_FACTORS]    # in each later stage
    Py_ssize_t w                # columns of the neighbours in the tail
    const int* nbr              # their slots within the component
    double* chain               # B: products with the coarser factors (q, qc) and with the tail (q, w)
    double* panel
    double* chain_out           # M B on the way up, B Q on the way back
    double* panel_out

# An eliminated level that has a sparse level of the tail among its neighbours.
cdef struct Panel:
    Py_ssize_t q                # its columns
    Py_ssize_t w                # columns of its neighbours
    Py_ssize_t at               # where the sparse level stands among them
    const int* nbr
    const double* B             # (q, w)

# That sparse level, and what is summed over all such others.
cdef struct Target:
    Py_ssize_t n                # its columns
    Py_ssize_t w                # columns of its later neighbours
    const int* where            # places of slots among them
    double* own                 # (n, n), (n, w): products on the way up, covariances on the way back
    double* panel
    double* scratch

# A part of a matrix that is stored by rows.
cdef struct Matrix:
    double* at
    Py_ssize_t rows, columns
    Py_ssize_t ld               # from row to row

# Blocks N_ab for the levels a, b of two factors.
cdef struct Pairs:
    const Level* f
    const Level* g
    Py_ssize_t size             # rows of N
    const double* N
    const double* x             # (size,)
    double* left                # work space: (m_g, q_f q_g) twice
    double* right

# Sums over the levels of nested factors that are in memory (see lanes/families.pxi).
#
# uses   hold, hold_index, aligned_zeros
# gives  FamilySums


cdef class FamilySums:
    """Sums over the levels of nested factors, and over them only: those of disjoint families add up.

    Parameters
    ----------
    packed : (n_vectors, r(r+1)/2 + r k + 1, lanes) array
        The levels of the finest factor.
    families : Families
        Places of the levels, finest factor first: `starts`, first vectors of the blocks, and `parents`.
    r, k : int
        Columns that all factors are written in, and columns of [X y].
    """

    cdef readonly Py_ssize_t r, k, n_stages
    cdef Shape shape
    cdef ChainStage stage[MAX_STAGES]
    cdef list kept              # arrays that the pointers lead to
    cdef object last            # T_s L_s of the last sweep up that was asked for by `values` or `derivatives`
    cdef double* part           # curvature of one stage
    cdef double* scratch

    def __init__(self, packed, families, Py_ssize_t r, Py_ssize_t k):
        cdef Py_ssize_t d, n_g, n_c = r * k
        if len(families.starts) > MAX_STAGES:
            raise ValueError(f"more than {MAX_STAGES} grouping factors")
        self.kept = []
        self.r, self.k, self.n_stages = r, k, len(families.starts)
        self.shape = make_shape(r, k)
        self.lay_families(packed, families)
        n_g = n_c * (n_c + 1) // 2
        d = self.n_stages * self.shape.n_a
        self.part = hold(self.kept, np.zeros(d * d))
        self.scratch = hold(self.kept, aligned_zeros(kernels.lanes * (
            15 * r * r + 5 * n_c + 5 * self.shape.n_a + 2 * n_g + k * (k + 1) + d * d
            + d * (self.shape.n_a + n_c) + 64)))

    cdef lay_families(self, packed, families):
        """Records of all levels, and where each finds its parent's."""
        cdef Py_ssize_t s, n_vectors, lanes = kernels.lanes, r = self.r, n_a = self.shape.n_a, n_c = self.shape.n_c
        cdef Py_ssize_t base = 3 * (n_a + n_c) + n_a + r * r
        cdef ChainStage* stage
        cdef const double[:, :, ::1] finest = packed
        self.kept.append(finest)
        for s in range(self.n_stages):
            stage = &self.stage[s]
            stage.level = s
            stage.n_blocks = len(families.starts[s]) - 1
            stage.start = hold_index(self.kept, families.starts[s])
            n_vectors = stage.start[stage.n_blocks]
            stage.packed = &finest[0, 0, 0] if s == 0 else NULL
            stage.stride = n_a + n_c if s == 0 else base + n_a + 2 * n_c + s * n_a * (n_a + n_c)
            # one more for the children that fill up a vector
            stage.record = hold(self.kept, aligned_zeros((n_vectors + 1) * stage.stride * lanes))
            stage.parent = NULL
        for s in range(self.n_stages - 1):
            stage = &self.stage[s]
            places = np.asarray(families.parents[s], dtype=np.intp)
            places = np.where(places < 0, self.stage[s + 1].start[self.stage[s + 1].n_blocks] * lanes, places)
            stride = self.stage[s + 1].stride
            stage.parent = hold_index(self.kept, places // lanes * stride * lanes + places % lanes)
            stage.above = self.stage[s + 1].record
            stage.above_q = base
            stage.above_sums = base + n_a + 2 * n_c

    # --- sweeps

    cdef void clear(self, Py_ssize_t field, Py_ssize_t width) noexcept nogil:
        """Set a field of all records but the finest stage's to zero; width < 0: up to the end of the record."""
        cdef Py_ssize_t s, v, lanes = kernels.lanes
        cdef ChainStage* stage
        for s in range(1, self.n_stages):
            stage = &self.stage[s]
            for v in range(stage.start[stage.n_blocks]):
                memset(stage.record + (v * stage.stride + field) * lanes, 0,
                       (width if width >= 0 else stage.stride - field) * lanes * sizeof(double))

    cdef double up(self, const double* factors, double* total) noexcept nogil:
        """Up the stages: log|V|, and sum D'D (packed).

        Parameters
        ----------
        factors : (n_stages, r, r)
            T_s L_s, columns of zeros where q_s < r.
        total : (k(k+1)/2,)
        """
        cdef Py_ssize_t s
        cdef double logdet = 0.0
        memset(total, 0, self.k * (self.k + 1) // 2 * sizeof(double))
        self.clear(0, self.shape.n_a + self.shape.n_c)
        for s in range(self.n_stages):
            logdet += kernels.chain_up(&self.shape, &self.stage[s], factors + s * self.r * self.r, total, self.scratch)
        return logdet

    cdef void down(self, const double* factors, const ChainSums* asked) noexcept nogil:
        """Down the stages, after `up` with the same factors: what is asked for, its sums one stage after the other.

        `asked.curve` is a whole matrix over the unit directions of all stages.
        """
        cdef Py_ssize_t s, i, j, d, n_a = self.shape.n_a, n_c = self.shape.n_c, size = self.n_stages * n_a
        cdef ChainSums sums = asked[0]
        sums.curve = self.part
        if sums.second:
            self.clear(self.stage[0].above_sums if self.n_stages > 1 else 0, -1)
        for s in range(self.n_stages - 1, -1, -1):
            sums.n = asked.n + s * n_a
            sums.f = asked.f + s * n_a
            sums.gram = asked.gram + s * (n_c * (n_c + 1) // 2)
            kernels.chain_down(&self.shape, &self.stage[s], factors + s * self.r * self.r, &sums, self.scratch)
        if not sums.second:
            return
        memset(asked.curve, 0, size * size * sizeof(double))
        for s in range(self.n_stages):
            d = (s + 1) * n_a
            if s > 0:
                kernels.chain_second(&self.shape, &self.stage[s], &sums, self.scratch)
            for i in range(d):
                for j in range(i + 1):
                    asked.curve[i * size + j] += self.part[i * d + j]
        for i in range(size):
            for j in range(i):
                asked.curve[j * size + i] = asked.curve[i * size + j]

    def values(self, factors):
        """log|V| and sum D'D (k(k+1)/2,) where T_s L_s are `factors` (n_stages, r, r)."""
        cdef double[:, :, ::1] own = np.array(factors, dtype=float)
        total = np.empty(self.k * (self.k + 1) // 2)
        cdef double[::1] out = total
        cdef double logdet
        self.last = None
        with nogil:
            logdet = self.up(&own[0, 0, 0], &out[0])
        self.last = np.asarray(own)
        return logdet, total

    def derivatives(self, factors, weight, asked):
        """What `NestedEngine.sweep` asks for, its sums one after the other.

        Parameters
        ----------
        factors : (n_stages, r, r) array
        weight : (k, k) array
        asked : tuple
            `first`, `second`, `traces`, `forms` of `ChainSums`.
        """
        cdef Py_ssize_t n_c = self.shape.n_c, n_g = n_c * (n_c + 1) // 2, d = self.n_stages * self.shape.n_a
        cdef double[:, ::1] w = np.array(weight, dtype=float)
        cdef double[:, :, ::1] own
        cdef double[::1] out
        cdef ChainSums sums
        if self.last is None or not np.array_equal(self.last, factors):
            self.values(factors)
        own = self.last
        found = np.zeros(2 * d + self.n_stages * n_g + d * d)
        out = found
        sums = ChainSums(asked[0], asked[1], asked[2], asked[3], &w[0, 0], &out[0], &out[d], &out[2 * d],
                         &out[2 * d + self.n_stages * n_g])
        with nogil:
            self.down(&own[0, 0, 0], &sums)
        return found if asked[1] else found[: 2 * d]

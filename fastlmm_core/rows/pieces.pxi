# The pass over the rows in pieces, by several threads, where rows are ordered by group: each piece then has groups of
# its own, but for the one in which it begins.
#
# uses   Pass, same_columns, whole_sweep, FLUSH
# gives  add_in_parts

# Blocks of rows from which threads are worth starting, and pieces for each of them.
cdef Py_ssize_t MANY_BLOCKS = 8, PIECES = 4

cdef struct Piece:
    Pass d
    Py_ssize_t before           # group of the row before it
    Py_ssize_t after            # group of its last row
    bint ordered
    int flags

cdef struct Pieces:
    Piece* piece
    Py_ssize_t n_blocks, line, n_sums, n_work
    bint shared, plain, narrow
    double* carry               # (n_blocks, line)
    double* block               # (n_blocks, n_sums)
    double* work                # a work space of a pass for each worker


cdef bint increasing(const Piece* piece, code_t kind) noexcept nogil:
    """Whether the codes of a piece do not decrease, nor begin below that of the row before it."""
    cdef const code_t* codes = <const code_t*> piece.d.codes
    cdef Py_ssize_t i, row = piece.d.c_row
    cdef int wrong = 0
    cdef code_t before = <code_t> (piece.before + piece.d.base), now
    for i in range(piece.d.n):
        now = codes[i * row]
        wrong |= now < before
        before = now
    return wrong == 0


cdef void look_at_piece(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    cdef Pieces* all_pieces = <Pieces*> job
    cdef Piece* piece = all_pieces.piece + part
    if all_pieces.narrow:
        piece.ordered = increasing(piece, <int32_t> 0)
    else:
        piece.ordered = increasing(piece, <int64_t> 0)


cdef void sum_piece(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    cdef Pieces* all_pieces = <Pieces*> job
    cdef Piece* piece = all_pieces.piece + part
    piece.d.work = all_pieces.work + worker * all_pieces.n_work
    if all_pieces.narrow:
        piece.flags = whole_sweep(&piece.d, all_pieces.shared, all_pieces.plain, <int32_t> 0)
    else:
        piece.flags = whole_sweep(&piece.d, all_pieces.shared, all_pieces.plain, <int64_t> 0)


cdef Py_ssize_t group_at(const Pass* d, Py_ssize_t i, bint narrow) noexcept nogil:
    if narrow:
        return <Py_ssize_t> ((<const int32_t*> d.codes)[i * d.c_row] - d.base)
    return <Py_ssize_t> ((<const int64_t*> d.codes)[i * d.c_row] - d.base)


cdef bint cut(const Pass* d, Py_ssize_t n_pieces, Pieces* out) noexcept nogil:
    """Cut the rows into pieces of whole blocks; False where already their ends are not in order."""
    cdef Py_ssize_t part, first, stop, size = sizeof(int32_t) if out.narrow else sizeof(int64_t)
    cdef Piece* piece
    cdef Pass* own
    for part in range(n_pieces):
        piece = out.piece + part
        first = out.n_blocks * part // n_pieces
        stop = out.n_blocks * (part + 1) // n_pieces * FLUSH
        piece.d = d[0]
        own = &piece.d
        own.n = (stop if stop < d.n else d.n) - first * FLUSH
        own.codes = <const char*> d.codes + first * FLUSH * d.c_row * size
        own.X = d.X + first * FLUSH * d.x_row
        own.Z = d.Z + first * FLUSH * d.z_row
        own.y = d.y + first * FLUSH * d.y_row
        if d.weights != NULL:
            own.weights = d.weights + first * FLUSH * d.w_row
        if d.offset != NULL:
            own.offset = d.offset + first * FLUSH * d.o_row
        own.S, own.s_step = out.block + first * out.n_sums, out.n_sums
        own.carry = out.carry + first * out.line
        piece.before = group_at(d, first * FLUSH - 1, out.narrow) if part > 0 else 0
        piece.after = group_at(own, own.n - 1, out.narrow)
        own.lead = piece.before if part > 0 else -1
        if d.top == 0:
            # lines of groups between two pieces belong to the second
            own.top = own.lead + 1
            own.limit = max(piece.after + 1, own.top) if part < n_pieces - 1 else d.limit
        if piece.after < piece.before:
            return False
    return True


cdef int put_together(Pass* d, Py_ssize_t n_pieces, const Pieces* all_pieces) noexcept nogil:
    """Add what the pieces have left to raw and S, in the order of the rows; their flags."""
    cdef Py_ssize_t part, i, j
    cdef int flags = 0
    cdef Piece* piece
    cdef double* carry
    for part in range(n_pieces):
        piece = all_pieces.piece + part
        flags |= piece.flags
        carry = piece.d.carry
        for i in range((piece.d.n + FLUSH - 1) // FLUSH if part > 0 else 0):
            if carry[all_pieces.line - 1] == 0.0:
                break
            for j in range(all_pieces.line):
                d.raw[piece.d.lead * all_pieces.line + j] += carry[j]
            carry += all_pieces.line
    for i in range(all_pieces.n_blocks):
        for j in range(all_pieces.n_sums):
            d.S[j] += all_pieces.block[i * all_pieces.n_sums + j]
    return flags


cdef int add_in_parts(Pass* d, bint narrow, Py_ssize_t jobs) noexcept nogil:
    """`add_pass` by `jobs` threads; -1 where the rows are few or not in order, and nothing has been added then."""
    cdef Py_ssize_t k = d.p + 1, n_a = d.q * (d.q + 1) // 2, n_pieces, part
    cdef Pieces parts
    cdef double* memory
    cdef int flags = -1
    parts.n_blocks = (d.n + FLUSH - 1) // FLUSH
    if jobs < 2 or parts.n_blocks < MANY_BLOCKS:
        return -1
    n_pieces = min(PIECES * jobs, parts.n_blocks // 2)
    parts.line, parts.n_sums = n_a + d.q * k + 1, k * (k + 1) // 2 + n_a
    parts.n_work = (work_size(d.p, d.q) + 15) // 8 * 8
    parts.narrow, parts.shared = narrow, same_columns(d)
    parts.plain = d.weights == NULL and d.offset == NULL and d.x_transform == NULL and d.z_transform == NULL
    parts.piece = <Piece*> calloc(n_pieces, sizeof(Piece))
    memory = <double*> calloc(
        parts.n_blocks * (parts.line + parts.n_sums) + min(jobs, n_pieces) * parts.n_work, sizeof(double))
    if parts.piece != NULL and memory != NULL:
        parts.block = memory
        parts.carry = memory + parts.n_blocks * parts.n_sums
        parts.work = parts.carry + parts.n_blocks * parts.line
        if cut(d, n_pieces, &parts):
            run_parts(look_at_piece, &parts, n_pieces, jobs)
            flags = 0
            for part in range(n_pieces):
                if not parts.piece[part].ordered:
                    flags = -1
            if flags == 0:
                run_parts(sum_piece, &parts, n_pieces, jobs)
                flags = put_together(d, n_pieces, &parts)
    free(parts.piece)
    free(memory)
    return flags

# An order of elimination (engines.crossed.order.Layout) as the structs that the sweeps run over.
#
# uses   ProfiledEngine.take, which keeps the arrays that the structs point to
# gives  read_layout, levels_of

cdef double NEARLY_ALL = 0.5
"""Share of the levels of a core that those of a wide factor meet from which their products are worked on as a whole."""


cdef int* take_slots(ProfiledEngine owner, array) except? NULL:
    cdef const int[::1] view
    flat = np.ascontiguousarray(array, dtype=np.intc).reshape(-1)
    flat = flat if flat.size else np.zeros(1, dtype=np.intc)
    owner.kept.append(flat)
    view = flat
    return <int*> &view[0]


cdef read_layout(ProfiledEngine owner, Elimination* e, layout, Py_ssize_t wide):
    """Fill e; right-hand sides have `wide` columns at most."""
    cdef Py_ssize_t i, largest = 1, widest = 1, n_tail
    if len(layout.stages) > MAX_FACTORS or len(layout.tails) > MAX_FACTORS:
        raise ValueError(f"more than {MAX_FACTORS} grouping factors")
    e.n_stages = len(layout.stages)
    e.n_tails = len(layout.tails)
    e.n_slots = 0
    for i, stage in enumerate(layout.stages):
        read_stage(owner, e, i, stage)
        if e.n_tails:
            widest = max(widest, int(np.diff(stage.start).max()))
    e.tail_slot = e.n_slots
    for i, tail in enumerate(layout.tails):
        read_tail(owner, e, i, tail)
    for part in (*layout.stages, *layout.tails):
        largest = max(largest, part.q)
    read_cores(owner, e, layout)
    for i, stage in enumerate(layout.stages if e.n_tails else ()):
        read_lists(owner, e, i, stage, layout)
    e.sparse.n = 0
    if e.n_stages == 1 and e.n_comps == 1 and layout.sparse is None:
        fill_up(owner, e, layout.stages[0])
    if layout.sparse is not None:
        read_sparse(owner, e, layout)
    e.work = NULL
    e.jobs = 1
    e.wide = wide
    e.width = largest * (widest + sum(stage.q for stage in layout.stages) + 4 * largest)
    n_tail = e.n_slots - e.tail_slot
    e.scratch = owner.take(np.empty(max(e.width + 2 * largest * largest, largest * wide, n_tail,
                                        2 * largest * largest + largest * max(STRIP, n_tail))))
    e.block = NULL
    if e.n_tails and max(stage.q for stage in layout.stages) >= WIDE:
        e.block = owner.take(np.empty(widest * max(widest, wide)))
    e.partial = owner.take(np.zeros(owner.k * owner.k))
    e.place = take_slots(owner, np.zeros(widest, dtype=np.intc))


cdef read_stage(ProfiledEngine owner, Elimination* e, Py_ssize_t s, stage):
    """A factor of the chain; the finest one's products are never changed."""
    cdef Stage* f = &e.stage[s]
    f.m, f.q, f.qc, f.column, f.slot = stage.m, stage.q, stage.chain.shape[2], stage.column, e.n_slots
    e.n_slots += f.m * f.q
    f.parent = owner.take_index(stage.parent) if stage.parent is not None else NULL
    f.own0 = owner.take(stage.own)
    f.chain0 = owner.take(stage.chain)
    if e.n_tails:
        f.comp = owner.take_index(stage.comp)
        f.start = owner.take_index(stage.start)
        f.nbr = take_slots(owner, stage.slots)
        f.up = take_slots(owner, stage.up) if stage.up is not None else NULL
        f.panel0 = owner.take(stage.panel)
    f.own, f.chain, f.panel = f.own0, f.chain0, f.panel0
    if s > 0:
        f.own = owner.take(np.array(stage.own))
        f.chain = owner.take(np.array(stage.chain))
        f.cov = owner.take(np.zeros(f.m * f.q * f.q))
        f.cov_chain = owner.take(np.zeros(f.m * f.q * f.qc))
        if e.n_tails:
            f.panel = owner.take(np.array(stage.panel))
            f.cov_panel = owner.take(np.zeros(len(stage.panel)))
    f.whole = f.product = NULL
    f.mid = owner.take(np.zeros(f.m * f.q * f.q))
    f.proj = owner.take(np.zeros(f.m * f.q * f.q))
    f.factor = owner.take(np.zeros(f.q * f.q))
    f.G = owner.take(np.zeros(f.q * f.q))


cdef read_tail(ProfiledEngine owner, Elimination* e, Py_ssize_t t, tail):
    cdef Tail* g = &e.tail[t]
    g.m, g.q, g.column = tail.m, tail.q, tail.column
    e.n_slots += g.m * g.q
    g.slot = owner.take_index(tail.slot)
    g.comp = owner.take_index(tail.comp)
    g.start = owner.take_index(tail.start)
    g.nbr = take_slots(owner, tail.slots)
    g.own0 = owner.take(tail.own)
    g.panel0 = owner.take(tail.panel)
    g.factor = owner.take(np.zeros(g.q * g.q))
    g.G = owner.take(np.zeros(g.q * g.q))
    g.lift = owner.take(np.zeros(g.q * g.q))
    g.rest = owner.take(np.zeros(g.q * g.q))
    g.basis = owner.take(np.zeros(g.q * g.q))


cdef core_first(layout):
    """First slot of each core within its component."""
    core_slot = np.asarray(layout.core_slot)
    return core_slot - np.asarray(layout.comp_slot)[: len(core_slot)]


cdef read_cores(ProfiledEngine owner, Elimination* e, layout):
    """Sizes of the dense cores, the levels in each, and their matrices."""
    first = core_first(layout)
    comp_slot, core_slot = np.asarray(layout.comp_slot), np.asarray(layout.core_slot)
    nothing = np.zeros(0, dtype=np.intp)
    owner_of = np.concatenate([np.full(tail.m, i) for i, tail in enumerate(layout.tails)] + [nothing])
    comps = np.concatenate([tail.comp for tail in layout.tails] + [nothing])
    places = np.concatenate([tail.slot for tail in layout.tails] + [nothing]) - first[comps]
    for i, tail in enumerate(layout.tails):
        e.tail[i].core = owner.take_index(np.maximum(tail.slot - first[tail.comp], -1))
    owner_of, comps, places = owner_of[places >= 0], comps[places >= 0], places[places >= 0]
    order = np.lexsort((places, comps))
    e.block_tail = owner.take_index(owner_of[order])
    e.block_slot = owner.take_index(places[order])
    e.comp_block = owner.take_index(np.searchsorted(comps[order], np.arange(len(comp_slot))))
    sizes = comp_slot[1:] - core_slot
    e.n_comps = len(sizes)
    e.comp_slot = owner.take_index(comp_slot)
    e.core_slot = owner.take_index(core_slot)
    e.core_size = owner.take_index(sizes)
    squares = np.concatenate([[0], np.cumsum(sizes * sizes)]).astype(np.intp)
    e.comp_start = owner.take_index(squares)
    e.n_dense = int(squares.max())
    e.slots_of_cores = int(np.sum(layout.core_sizes))
    e.K = owner.take(np.empty(e.n_dense))
    e.S = e.cov = e.K
    e.second = NULL
    e.inverted = False
    e.pivot = owner.take(np.zeros(e.n_slots - e.tail_slot))
    e.widest = max([tail.q for tail in layout.tails], default=1)
    e.precision = owner.take(np.zeros((e.n_slots - e.tail_slot) * e.widest))


cdef read_lists(ProfiledEngine owner, Elimination* e, Py_ssize_t s, stage, layout):
    """Levels of a stage by tail slot: by the sparse ones, and by those of the cores where one works row by row."""
    cdef Stage* f = &e.stage[s]
    level = np.repeat(np.arange(stage.m), np.diff(stage.start))
    core = stage.slots >= core_first(layout)[stage.comp[level]]
    f.skip = owner.take_index(np.bincount(level[~core], minlength=stage.m))
    f.rowwise = e.n_stages == 1 and f.q == 1
    if not f.rowwise and layout.sparse is None:
        return
    chosen = slice(None) if f.rowwise else np.flatnonzero(~core)
    slots = stage.slots + np.asarray(layout.comp_slot)[stage.comp[level]]
    back, entry = sort_rows(slots[chosen], e.n_slots - e.tail_slot)
    entry = entry if f.rowwise else chosen[entry]
    f.back = owner.take_index(back)
    f.entry = owner.take_index(entry)
    f.level = owner.take_index(level[entry])
    if e.n_stages == 1:
        f.quad = owner.take(np.zeros(f.m * f.q * f.q))
    else:
        f.reach = owner.take(np.zeros(len(stage.panel)))


cdef fill_up(ProfiledEngine owner, Elimination* e, stage):
    """Products of the only factor of the chain with the core as one matrix,
    where it is wide and they are nearly all."""
    cdef Stage* f = &e.stage[0]
    cdef Py_ssize_t w = e.core_size[0]
    if f.q < WIDE or len(stage.slots) < NEARLY_ALL * f.m * w:
        return
    widths = np.diff(stage.start)
    level = np.repeat(np.arange(f.m), widths)
    whole = np.zeros((f.m, f.q, w))
    for i in range(f.q):
        at = np.arange(len(level)) + (f.q - 1) * np.asarray(stage.start)[level] + i * widths[level]
        whole[level, i, stage.slots] = stage.panel[at]
    f.whole, f.product = owner.take(whole), owner.take(np.zeros(whole.size))


cdef read_sparse(ProfiledEngine owner, Elimination* e, layout):
    """The levels of the tail that are eliminated one by one."""
    cdef Sparse* f = &e.sparse
    sparse = layout.sparse
    f.n = len(sparse.slot)
    f.tail = owner.take_index(sparse.tail)
    f.comp = owner.take_index(sparse.comp)
    f.slot = owner.take_index(sparse.slot)
    f.start = owner.take_index(sparse.start)
    f.nbr = take_slots(owner, sparse.slots)
    f.own_at = owner.take_index(sparse.own_at)
    f.panel_at = owner.take_index(sparse.panel_at)
    f.n_own = len(sparse.own)
    f.n_panel = len(sparse.panel)
    f.own0 = owner.take(sparse.own)
    f.panel0 = owner.take(sparse.panel)
    f.own = owner.take(np.zeros(f.n_own))
    f.mid = owner.take(np.zeros(f.n_own))
    f.proj = owner.take(np.zeros(f.n_own))
    f.cov = owner.take(np.zeros(f.n_own))
    f.panel = owner.take(np.zeros(f.n_panel))
    f.cov_panel = owner.take(np.zeros(f.n_panel))
    node = np.repeat(np.arange(f.n), np.diff(sparse.start))
    early = sparse.slots < core_first(layout)[sparse.comp[node]]
    f.skip = owner.take_index(np.bincount(node[early], minlength=f.n))
    slots = sparse.slots + np.asarray(layout.comp_slot)[sparse.comp[node]]
    chosen = np.flatnonzero(early)
    back, entry = sort_rows(slots[chosen], e.n_slots - e.tail_slot)
    f.back = owner.take_index(back)
    f.entry = owner.take_index(chosen[entry])
    f.level = owner.take_index(node[chosen[entry]])
    f.where = take_slots(owner, np.zeros(int(np.diff(layout.comp_slot).max()), dtype=np.intc))


cdef levels_of(ProfiledEngine owner, const Elimination* e, layout, Level* out):
    """Where the levels of each factor stand, those of the chain first."""
    cdef Py_ssize_t i
    for i in range(e.n_stages):
        places = e.stage[i].slot + e.stage[i].q * np.arange(e.stage[i].m)
        out[i] = Level(e.stage[i].m, e.stage[i].q, e.stage[i].column, owner.take_index(places))
    for i, tail in enumerate(layout.tails):
        places = e.tail_slot + np.asarray(layout.comp_slot)[tail.comp] + tail.slot
        out[e.n_stages + i] = Level(tail.m, tail.q, tail.column, owner.take_index(places))

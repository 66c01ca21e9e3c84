# The order of labels: by the eight bytes that follow what all of them begin with, digit by digit; where these do not
# tell it, the caller sorts the text itself.
#
# uses   Labels, is_short (label_table.pxi)
# gives  sorted_order

cdef enum:
    DIGITS = 8          # bytes of a key by which labels are sorted


cdef inline const char* text_of(const Labels* all, Py_ssize_t i) noexcept nogil:
    """The text of a label, which up to sixteen bytes is in its key."""
    return <const char*> &all.key[i] if is_short(&all.key[i]) else all.text[i]


cdef bint take_keys(const Labels* all, uint64_t* keys) noexcept nogil:
    """Of each label the eight bytes after those that all have, the first the most significant;
    whether they increase."""
    cdef Py_ssize_t i, length, shared = all.length[0] if all.n > 0 else 0
    cdef uint64_t word
    cdef bint increase = True
    cdef const char* own
    cdef const char* first = text_of(all, 0) if all.n > 0 else NULL
    for i in range(1, all.n):
        own = text_of(all, i)
        length = 0
        while length < shared and length < all.length[i] and own[length] == first[length]:
            length += 1
        shared = length
    for i in range(all.n):
        own = text_of(all, i)
        word = 0
        length = all.length[i] - shared
        memcpy(&word, own + shared, 8 if length > 8 else length)
        keys[i] = swapped(word)
        increase = increase and (i == 0 or keys[i] > keys[i - 1])
    return increase


# Where a label stands, and what it is sorted by.
cdef struct Placed:
    uint64_t key
    int64_t code


cdef bint sort_placed(Py_ssize_t n, Placed* items, Placed* spare) noexcept nogil:
    """Sort by the keys, byte by byte from the last one that differs; whether `spare` holds the result."""
    cdef Py_ssize_t count[DIGITS][256]
    cdef Py_ssize_t i, at, digit, value, total
    cdef uint64_t differ = 0, key
    cdef bint swapped_ = False
    cdef Placed* other
    memset(count, 0, sizeof(count))
    for i in range(n):
        key = items[i].key
        differ |= key ^ items[0].key
        for digit in range(DIGITS):
            count[digit][key >> 8 * digit & 255] += 1
    for digit in range(DIGITS):
        if not differ >> 8 * digit & 255:
            continue
        total = 0
        for value in range(256):
            at = count[digit][value]
            count[digit][value] = total
            total += at
        for i in range(n):
            value = <Py_ssize_t> (items[i].key >> 8 * digit & 255)
            spare[count[digit][value]] = items[i]
            count[digit][value] += 1
        other, items, spare = items, spare, items
        swapped_ = not swapped_
    return swapped_


cdef object sorted_order(const Labels* all):
    """Codes in the order of their labels; None where the bytes looked at do not tell it."""
    cdef Py_ssize_t i, n = all.n
    cdef uint64_t[::1] keys = np.empty(max(n, 1), dtype=np.uint64)
    cdef int64_t[::1] out
    cdef bint tell = True
    cdef Placed* items
    if take_keys(all, &keys[0]):
        return np.arange(n)
    items = <Placed*> malloc(2 * n * sizeof(Placed))
    if items == NULL:
        raise MemoryError()
    order = np.empty(n, dtype=np.int64)
    out = order
    with nogil:
        for i in range(n):
            items[i] = Placed(keys[i], i)
        i = n if sort_placed(n, items, items + n) else 0
        read_order(n, items + i, &out[0], &tell)
    free(items)
    return order if tell else None


cdef void read_order(Py_ssize_t n, const Placed* items, int64_t* out, bint* tell) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = items[i].code
        tell[0] = tell[0] and (i == 0 or items[i].key != items[i - 1].key)

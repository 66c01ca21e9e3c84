# Rows of Python's text: those that share their objects are recognised by their addresses, and not looked at.
#
# uses   Labels, Batch, look_up (label_table.pxi)
# gives  Owners: make_room; take_codes of any rows; recognise and spread of rows that share objects

cdef enum:
    LINE = 64           # bytes of a line of the cache
    TRIED = 1 << 16     # rows after which it is seen whether they share objects
    SHARED = 8          # one row in so many has to


cdef int take_objects(PyObject** items, Py_ssize_t ahead, Batch* batch) except -1:
    """The text of a batch of objects; 0 where one of them is no text.  `ahead`: rows that are fetched after these."""
    cdef Py_ssize_t i
    for i in range(batch.n):
        if i < ahead:
            # a short text stands behind its head, in the next line of the cache as a rule
            FETCH(items[batch.n + i])
            FETCH(<const char*> items[batch.n + i] + LINE - 1)
        if items[i] == NULL or not PyUnicode_Check(<object> items[i]):
            return 0
        if is_plain(<object> items[i]):
            batch.text[i], batch.length[i] = plain_text(<object> items[i]), PyUnicode_GET_LENGTH(<object> items[i])
        else:
            batch.text[i] = utf8_of(<object> items[i], &batch.length[i])
    return 1


# The objects of labels met before.
cdef struct Owners:
    PyObject** item         # of each label the first object that is it, or NULL
    Py_ssize_t room
    uint32_t* number        # code and one of a label by the address of its object, 0 where there is none
    int bits                # places of `number`: 2^bits
    Py_ssize_t rows, left   # rows that were looked for, those that were not recognised


# Rows of a batch that are not recognised.
cdef struct Rest:
    Py_ssize_t n
    PyObject* item[BATCH]
    Py_ssize_t place[BATCH]     # in the batch
    Py_ssize_t at[BATCH]        # in `number`
    int64_t code[BATCH]


cdef inline Py_ssize_t place_of(const Owners* own, PyObject* item) noexcept nogil:
    """Where the number of an object stands: addresses are at like distances as a rule, which a product spreads."""
    return <Py_ssize_t> ((<uint64_t> <size_t> item >> 4) * <uint64_t> 0x9E3779B97F4A7C15 >> (64 - own.bits))


cdef int make_room(Owners* own, const Labels* all, bint shared) except -1:
    """Room for the objects of as many labels as `all` has room for."""
    cdef Py_ssize_t i
    cdef uint32_t* number
    cdef PyObject** item
    item = <PyObject**> realloc(own.item, all.room * sizeof(PyObject*))
    if item == NULL:
        raise MemoryError()
    own.item, own.room = item, all.room
    if not shared:
        return 0
    while 1 << own.bits < 2 * all.room:
        own.bits += 1
    number = <uint32_t*> calloc(1 << own.bits, sizeof(uint32_t))
    if number == NULL:
        raise MemoryError()
    free(own.number)
    own.number = number
    for i in range(all.n):
        if item[i] != NULL:
            number[place_of(own, item[i])] = <uint32_t> (i + 1)
    return 0


cdef void recognise(Owners* own, PyObject** items, Py_ssize_t n, int64_t* codes, Rest* rest) noexcept nogil:
    """Codes of objects met before, -1 for that of the row before, and the rest of a batch."""
    cdef Py_ssize_t i
    cdef Py_ssize_t[BATCH] at
    cdef uint32_t[BATCH] number
    rest.n = 0
    for i in range(n):
        at[i] = place_of(own, items[i])
        FETCH(own.number + at[i])
    for i in range(n):
        number[i] = own.number[at[i]]
        if number[i] > 0:
            FETCH(own.item + number[i] - 1)
    for i in range(n):
        codes[i] = -1
        if i > 0 and items[i] == items[i - 1]:
            continue
        if number[i] > 0 and own.item[number[i] - 1] == items[i]:
            codes[i] = <int64_t> number[i] - 1
            continue
        rest.item[rest.n], rest.place[rest.n], rest.at[rest.n] = items[i], i, at[i]
        rest.n += 1
        FETCH(items[i])
        FETCH(<const char*> items[i] + LINE - 1)
    own.rows += n
    own.left += rest.n


cdef void spread(Owners* own, const Rest* rest, Py_ssize_t n, int64_t* codes) noexcept nogil:
    """The codes of the rest to their rows, and to where their objects are looked for."""
    cdef Py_ssize_t i
    for i in range(rest.n):
        codes[rest.place[i]] = rest.code[i]
        if own.item[rest.code[i]] == rest.item[i]:
            own.number[rest.at[i]] = <uint32_t> (rest.code[i] + 1)
    for i in range(1, n):
        if codes[i] < 0:
            codes[i] = codes[i - 1]


cdef int take_codes(Labels* all, Owners* own, PyObject** items, Py_ssize_t n, Py_ssize_t ahead, int64_t* codes
                    ) except -1:
    """Codes of a batch of objects, for whose labels there is room; 0 where one of them is no text."""
    cdef Py_ssize_t i, known = all.n
    cdef Batch batch
    batch.n = n
    if not take_objects(items, ahead, &batch):
        return 0
    look_up(all, &batch, codes)
    for i in range(n if all.n > known else 0):
        # codes are given out in the order of the rows; of a subclass of str the label is plain text
        if codes[i] == known:
            own.item[known] = items[i] if PyUnicode_CheckExact(<object> items[i]) else NULL
            known += 1
    return 1

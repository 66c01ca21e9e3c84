# cython: language_level=3
"""Text to codes: each row's label is looked up in a table of those met before.

Text is UTF-8, one row after the other (Arrow's strings), or Python's.  What tells a label is kept in the order in which
labels occur: the text itself up to 16 bytes, two hashes of longer text, which are then compared with the first row that
has it.  A slot of the table holds half of the hash and where that is, in eight bytes, so that the tables of some hundred
thousand labels stay in the cache.  Rows are taken in batches, and the slots of a batch, then the labels, are fetched
into the cache before the first is looked at: rows in any order cost nearly the same.  Rows of Python's text often share
their objects: those are recognised by their addresses, and not looked at.

Labels are sorted as Python sorts text, by code points, which is the order of their bytes.
"""
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check, PyUnicode_CheckExact, PyUnicode_DecodeUTF8, PyUnicode_GET_LENGTH
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

import numpy as np

cdef extern from *:
    void fetch "__builtin_prefetch"(const void*, int, int) nogil
    uint64_t swapped "__builtin_bswap64"(uint64_t) nogil

cdef extern from "Python.h":
    const char* utf8_of "PyUnicode_AsUTF8AndSize"(object, Py_ssize_t*) except NULL
    bint is_plain "PyUnicode_IS_COMPACT_ASCII"(object)
    const char* plain_text "(const char*) PyUnicode_1BYTE_DATA"(object)

ctypedef fused offset_t:
    int32_t
    int64_t

# Rows of a batch.
cdef enum:
    BATCH = 128
    AHEAD = 24          # labels ahead of which the text of one is fetched: it stands anywhere among the rows
    SHORT = 16          # bytes of text that a slot holds
    KEPT = 1 << 16      # bytes of a block of text that is kept
    LINE = 64           # bytes of a line of the cache
    DIGITS = 8          # bytes of a key by which labels are sorted
    TRIED = 1 << 16     # rows after which it is seen whether they share objects
    SHARED = 8          # one row in so many has to

# What tells a label.
cdef struct Key:
    uint64_t low, high
    int64_t length

# A slot of the table: half of the hash of a label, and its code and one; 0 where it is empty.
cdef struct Slot:
    uint32_t tag, number

cdef struct Labels:
    Slot* slots
    Py_ssize_t n_slots      # a power of two
    Py_ssize_t n            # labels found
    Key* key                # of each label, by code
    const char** text
    Py_ssize_t room         # labels that `key` and `text` have room for

# The rows of a batch.
cdef struct Batch:
    Py_ssize_t n
    const char* text[BATCH]     # NULL where missing
    Py_ssize_t length[BATCH]
    Key key[BATCH]
    uint64_t hash[BATCH]
    bint again[BATCH]           # whether it is the label of the row before


cdef inline uint64_t mix(uint64_t a, uint64_t b) noexcept nogil:
    """A hash of two words."""
    cdef uint64_t h = (a ^ (b << 29 | b >> 35)) * <uint64_t> 0x9E3779B97F4A7C15
    h = (h ^ (h >> 32) ^ b) * <uint64_t> 0xD6E8FEB86659FD93
    return h ^ (h >> 32)


cdef inline uint64_t word_at(const char* text) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, text, 8)
    return word


cdef inline uint64_t half_word_at(const char* text) noexcept nogil:
    cdef uint32_t word
    memcpy(&word, text, 4)
    return word


cdef inline void describe(const char* text, Py_ssize_t length, Key* key) noexcept nogil:
    """What tells the label: of short text two words from its ends, which may overlap."""
    cdef uint64_t word
    cdef Py_ssize_t at = 0
    key.low, key.high, key.length = 0, 0, length
    if length <= SHORT:
        if length >= 8:
            key.low, key.high = word_at(text), word_at(text + length - 8)
        elif length >= 4:
            key.low, key.high = half_word_at(text), half_word_at(text + length - 4)
        else:
            for at in range(length):
                key.low = key.low << 8 | <uint8_t> text[at]
        return
    while at + 8 <= length:
        word = word_at(text + at)
        key.low = mix(key.low, word)
        key.high = mix(word, key.high + <uint64_t> at)
        at += 8
    word = 0
    memcpy(&word, text + at, length - at)
    key.low = mix(key.low, word)
    key.high = mix(word, key.high + <uint64_t> at)


cdef inline bint same(const Key* one, const Key* other) noexcept nogil:
    return one.low == other.low and one.high == other.high and one.length == other.length


cdef inline uint64_t hash_of(const Key* key) noexcept nogil:
    return mix(key.low, key.high + <uint64_t> key.length)


cdef int furnish(Labels* all, Py_ssize_t n_slots) except -1:
    """A table with more slots."""
    cdef Py_ssize_t i, at
    cdef uint64_t hash
    cdef Slot* slots = <Slot*> calloc(n_slots, sizeof(Slot))
    if slots == NULL:
        raise MemoryError()
    for i in range(all.n):
        hash = hash_of(all.key + i)
        at = <Py_ssize_t> (hash & <uint64_t> (n_slots - 1))
        while slots[at].number > 0:
            at = (at + 1) & (n_slots - 1)
        slots[at] = Slot(<uint32_t> (hash >> 32), <uint32_t> (i + 1))
    free(all.slots)
    all.slots, all.n_slots = slots, n_slots
    return 0


cdef int enlarge(Labels* all, Py_ssize_t n) except -1:
    """Room for n labels in all, and slots of which at most half are taken."""
    cdef const char** text
    cdef Key* key
    if all.n_slots < 2 * n:
        while all.n_slots < 2 * n:
            furnish(all, 4 * all.n_slots if all.n_slots > 0 else 1024)
    if all.room < n:
        text = <const char**> realloc(all.text, 2 * n * sizeof(char*))
        if text == NULL:
            raise MemoryError()
        all.text = text
        key = <Key*> realloc(all.key, 2 * n * sizeof(Key))
        if key == NULL:
            raise MemoryError()
        all.key, all.room = key, 2 * n
    return 0


cdef void clear(Labels* all) noexcept nogil:
    free(all.slots)
    free(all.key)
    free(all.text)


cdef void describe_batch(const Labels* all, Batch* batch) noexcept nogil:
    """What tells the labels of a batch, and their slots, then those that are there already, into the cache."""
    cdef Py_ssize_t i
    cdef Key* key
    cdef Slot slot
    for i in range(batch.n):
        if batch.text[i] == NULL:
            continue
        key = &batch.key[i]
        describe(batch.text[i], batch.length[i], key)
        batch.again[i] = i > 0 and batch.text[i - 1] != NULL and key.length <= SHORT and same(key, key - 1)
        if not batch.again[i]:
            batch.hash[i] = hash_of(key)
            fetch(all.slots + (batch.hash[i] & <uint64_t> (all.n_slots - 1)), 0, 3)
    for i in range(batch.n):
        if batch.text[i] != NULL and not batch.again[i]:
            slot = all.slots[batch.hash[i] & <uint64_t> (all.n_slots - 1)]
            if slot.number > 0:
                fetch(all.key + slot.number - 1, 0, 3)


cdef void look_up(Labels* all, Batch* batch, int64_t* codes) noexcept nogil:
    """Codes of a batch, for whose labels there is room."""
    cdef Py_ssize_t i, at
    cdef uint32_t tag
    cdef Slot* slot
    cdef Key* key
    describe_batch(all, batch)
    for i in range(batch.n):
        codes[i] = -1
        if batch.text[i] == NULL:
            continue
        if batch.again[i]:
            codes[i] = codes[i - 1]
            continue
        key = &batch.key[i]
        at = <Py_ssize_t> (batch.hash[i] & <uint64_t> (all.n_slots - 1))
        tag = <uint32_t> (batch.hash[i] >> 32)
        while True:
            slot = all.slots + at
            if slot.number == 0:
                all.key[all.n], all.text[all.n] = key[0], batch.text[i]
                all.n += 1
                slot[0] = Slot(tag, <uint32_t> all.n)
                break
            if slot.tag == tag and same(all.key + slot.number - 1, key) and (
                    key.length <= SHORT or memcmp(all.text[slot.number - 1], batch.text[i], key.length) == 0):
                break
            at = (at + 1) & (all.n_slots - 1)
        codes[i] = <int64_t> slot.number - 1


cdef inline void fetch_label(const Labels* all, Py_ssize_t i) noexcept nogil:
    fetch(all.text[i if i < all.n else all.n - 1], 0, 3)


include "sorting.pxi"


cdef object finish(Labels* all, int64_t[::1] codes, PyObject** owners):
    """Labels in order, as an array of objects; the codes are renumbered.  `owners`: of each label its text, or NULL."""
    cdef Py_ssize_t i, ahead, n = codes.shape[0]
    cdef bint moved = False
    cdef int64_t[::1] place
    cdef int32_t[::1] rank = np.empty(max(all.n, 1), dtype=np.int32)
    labels_array = np.empty(all.n, dtype=object)
    cdef object[::1] labels = labels_array
    order = sorted_order(all)
    if order is None:
        found = [PyUnicode_DecodeUTF8(all.text[i], all.key[i].length, NULL) for i in range(all.n)]
        order = np.array(sorted(range(all.n), key=found.__getitem__), dtype=np.int64)
    place = order
    for i in range(all.n):
        ahead = place[i + AHEAD if i + AHEAD < all.n else i]
        if owners != NULL and owners[place[i]] != NULL:
            fetch(owners[ahead], 1, 3)
            labels[i] = <object> owners[place[i]]
        else:
            fetch_label(all, ahead)
            labels[i] = PyUnicode_DecodeUTF8(all.text[place[i]], all.key[place[i]].length, NULL)
        rank[place[i]] = i
        moved = moved or place[i] != i
    if moved:
        with nogil:
            for i in range(n):
                if codes[i] >= 0:
                    codes[i] = rank[codes[i]]
    return labels_array


cdef void read_rows(const char* data, const offset_t* offsets, const uint8_t* missing, Py_ssize_t start, Batch* batch
                    ) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(batch.n):
        batch.text[i] = data + offsets[start + i]
        batch.length[i] = offsets[start + i + 1] - offsets[start + i]
        if missing != NULL and missing[start + i]:
            batch.text[i] = NULL


cdef int take_rows(Labels* all, const uint8_t[::1] data, offsets, missing, int64_t[::1] codes, Block** kept) except -1:
    """Codes of rows of text, -1 where missing; with `kept` the text of new labels is copied there."""
    cdef Py_ssize_t n = codes.shape[0], start, known
    cdef bint narrow = offsets.dtype == np.int32
    cdef const int32_t[::1] short_offsets
    cdef const int64_t[::1] long_offsets
    cdef const uint8_t[::1] gaps
    cdef const uint8_t* gap = NULL
    cdef const char* text = ""
    cdef Batch batch
    if data.shape[0] > 0:
        text = <const char*> &data[0]
    if narrow:
        short_offsets = offsets
    else:
        long_offsets = offsets
    if missing is not None and n > 0:
        gaps = missing.view(np.uint8)
        gap = &gaps[0]
    for start in range(0, n, BATCH):
        batch.n = min(BATCH, n - start)
        known = all.n
        enlarge(all, known + batch.n)
        with nogil:
            if narrow:
                read_rows(text, &short_offsets[0], gap, start, &batch)
            else:
                read_rows(text, &long_offsets[0], gap, start, &batch)
            look_up(all, &batch, &codes[start])
        if kept != NULL and all.n > known:
            keep(all, known, kept)
    return 0


def text_codes(const uint8_t[::1] data, offsets, missing=None):
    """Codes and sorted labels of text.

    Parameters
    ----------
    data : uint8 array
        UTF-8, row after row.
    offsets : (n + 1,) int32 or int64 array
        Where each row begins.
    missing : (n,) bool array, optional

    Returns
    -------
    codes : (n,) int64 array
        -1 where missing.
    labels : array of str
    """
    cdef Labels all
    all.slots, all.key, all.text = NULL, NULL, NULL
    all.n_slots, all.n, all.room = 0, 0, 0
    codes_array = np.empty(len(offsets) - 1, dtype=np.int64)
    cdef int64_t[::1] codes = codes_array
    try:
        take_rows(&all, data, offsets, missing, codes, NULL)
        labels = finish(&all, codes, NULL)
    finally:
        clear(&all)
    return codes_array, labels


# Text of labels whose rows are forgotten, and the block before.
cdef struct Block:
    Block* before
    Py_ssize_t used, room
    char* text


cdef int keep(Labels* all, Py_ssize_t first, Block** kept) except -1:
    """Copy the text of the labels from one on, of which the rows are about to be forgotten."""
    cdef Py_ssize_t i, length, room
    cdef Block* block
    for i in range(first, all.n):
        length = all.key[i].length
        if kept[0] == NULL or kept[0].used + length > kept[0].room:
            room = max(<Py_ssize_t> KEPT, length)
            block = <Block*> malloc(sizeof(Block) + room)
            if block == NULL:
                raise MemoryError()
            block.before, block.used, block.room, block.text = kept[0], 0, room, <char*> (block + 1)
            kept[0] = block
        block = kept[0]
        memcpy(block.text + block.used, all.text[i], length)
        all.text[i] = block.text + block.used
        block.used += length
    return 0


cdef class TextTable:
    """Labels of text that comes in pieces, with slots in the order in which they first occur.

    Attributes
    ----------
    n : int
        Labels known.
    """

    cdef Labels all
    cdef Block* kept

    def __cinit__(self):
        self.all.slots, self.all.key, self.all.text = NULL, NULL, NULL
        self.all.n_slots, self.all.n, self.all.room = 0, 0, 0
        self.kept = NULL

    def __dealloc__(self):
        cdef Block* block = self.kept
        while block != NULL:
            self.kept = block.before
            free(block)
            block = self.kept
        clear(&self.all)

    @property
    def n(self):
        return self.all.n

    def slots(self, const uint8_t[::1] data, offsets, missing=None):
        """The slot of each row, -1 where missing, for text as `text_codes` takes it: (n,) int64 array."""
        codes_array = np.empty(len(offsets) - 1, dtype=np.int64)
        cdef int64_t[::1] codes = codes_array
        take_rows(&self.all, data, offsets, missing, codes, &self.kept)
        return codes_array

    def labels(self):
        """The label of each slot, an array of str."""
        cdef Py_ssize_t i
        labels_array = np.empty(self.all.n, dtype=object)
        cdef object[::1] labels = labels_array
        for i in range(self.all.n):
            labels[i] = PyUnicode_DecodeUTF8(self.all.text[i], self.all.key[i].length, NULL)
        return labels_array

    def order(self):
        """The slots in the order of their labels, an array; None where all labels have to be compared for it."""
        return sorted_order(&self.all)


cdef int take_objects(PyObject** items, Py_ssize_t ahead, Batch* batch) except -1:
    """The text of a batch of objects; 0 where one of them is no text.  `ahead`: rows that are fetched after these."""
    cdef Py_ssize_t i
    for i in range(batch.n):
        if i < ahead:
            # a short text stands behind its head, in the next line of the cache as a rule
            fetch(items[batch.n + i], 0, 3)
            fetch(<const char*> items[batch.n + i] + LINE - 1, 0, 3)
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
    """Where the number of an object stands: addresses are at like distances as a rule, which a product spreads evenly."""
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
        fetch(own.number + at[i], 0, 3)
    for i in range(n):
        number[i] = own.number[at[i]]
        if number[i] > 0:
            fetch(own.item + number[i] - 1, 0, 3)
    for i in range(n):
        codes[i] = -1
        if i > 0 and items[i] == items[i - 1]:
            continue
        if number[i] > 0 and own.item[number[i] - 1] == items[i]:
            codes[i] = <int64_t> number[i] - 1
            continue
        rest.item[rest.n], rest.place[rest.n], rest.at[rest.n] = items[i], i, at[i]
        rest.n += 1
        fetch(items[i], 0, 3)
        fetch(<const char*> items[i] + LINE - 1, 0, 3)
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


cdef int take_codes(Labels* all, Owners* own, PyObject** items, Py_ssize_t n, Py_ssize_t ahead, int64_t* codes) except -1:
    """Codes of a batch of objects, for whose labels there is room; 0 where one of them is no text."""
    cdef Py_ssize_t i, known = all.n
    cdef Batch batch
    batch.n = n
    if not take_objects(items, ahead, &batch):
        return 0
    look_up(all, &batch, codes)
    for i in range(n):
        # codes are given out in the order of the rows; of a subclass of str the label is plain text
        if codes[i] == known:
            own.item[known] = items[i] if PyUnicode_CheckExact(<object> items[i]) else NULL
            known += 1
    return 1


def object_codes(values):
    """`text_codes` of an array of objects; None where one of them is no text."""
    cdef Py_ssize_t n = len(values), start, count
    cdef Labels all
    cdef Owners own
    cdef Rest rest
    cdef Py_buffer rows
    cdef PyObject** items
    cdef bint shared = True
    all.slots, all.key, all.text = NULL, NULL, NULL
    all.n_slots, all.n, all.room = 0, 0, 0
    own.item, own.number, own.bits, own.room, own.rows, own.left = NULL, NULL, 10, 0, 0, 0
    codes_array = np.empty(n, dtype=np.int64)
    cdef int64_t[::1] codes = codes_array
    PyObject_GetBuffer(values, &rows, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    items = <PyObject**> rows.buf
    try:
        if rows.format[0] != b"O":
            return None
        for start in range(0, n, BATCH):
            count = min(BATCH, n - start)
            enlarge(&all, all.n + count)
            if own.room < all.room:
                make_room(&own, &all, shared)
            if not shared:
                if not take_codes(&all, &own, items + start, count, min(BATCH, n - start - count), &codes[start]):
                    return None
                continue
            recognise(&own, items + start, count, &codes[start], &rest)
            if not take_codes(&all, &own, rest.item, rest.n, 0, rest.code):
                return None
            spread(&own, &rest, count, &codes[start])
            shared = own.rows < TRIED or own.rows - own.left >= own.rows // SHARED
        labels = finish(&all, codes, own.item)
    except UnicodeEncodeError:
        # half of a surrogate pair
        return None
    finally:
        PyBuffer_Release(&rows)
        free(own.item)
        free(own.number)
        clear(&all)
    return codes_array, labels

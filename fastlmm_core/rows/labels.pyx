# cython: language_level=3
"""Text to codes: each row's label is looked up in a table of those met before.

Text is UTF-8, one row after the other (Arrow's strings), or Python's.  A slot of the table holds what tells a label: the
text itself up to 16 bytes, two hashes of longer text, which are then compared with the first row that has it.  Rows are
taken in batches, and the slots of a batch are fetched into the cache before the first is looked at: rows in any order
cost the same.

Labels are sorted as Python sorts text, by code points, which is the order of their bytes.
"""
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check, PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

import numpy as np

cdef extern from *:
    void fetch "__builtin_prefetch"(const void*, int, int) nogil
    uint64_t swapped "__builtin_bswap64"(uint64_t) nogil

cdef extern from "Python.h":
    const char* utf8_of "PyUnicode_AsUTF8AndSize"(object, Py_ssize_t*) except NULL

ctypedef fused offset_t:
    int32_t
    int64_t

# Rows of a batch.
cdef enum:
    BATCH = 128
    AHEAD = 24          # labels ahead of which the text of one is fetched: it stands anywhere among the rows
    SHORT = 16          # bytes of text that a slot holds
    KEPT = 1 << 16      # bytes of a block of text that is kept

# A label in the table; `code` is -1 where the slot is empty.
cdef struct Slot:
    uint64_t low, high
    int64_t length
    int64_t code

cdef struct Labels:
    Slot* slots
    Py_ssize_t n_slots      # a power of two
    Py_ssize_t n            # labels found
    const char** text       # of each label, by code
    int64_t* length
    Py_ssize_t room         # labels that `text` and `length` have room for

# The rows of a batch.
cdef struct Batch:
    Py_ssize_t n
    const char* text[BATCH]     # NULL where missing
    Py_ssize_t length[BATCH]
    Slot key[BATCH]
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


cdef inline void describe(const char* text, Py_ssize_t length, Slot* key) noexcept nogil:
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


cdef inline bint same(const Slot* one, const Slot* other) noexcept nogil:
    return one.low == other.low and one.high == other.high and one.length == other.length


cdef int furnish(Labels* all, Py_ssize_t n_slots) except -1:
    """A table with more slots, with what the last one holds."""
    cdef Slot* before = all.slots
    cdef Py_ssize_t n_before = all.n_slots, i, at
    cdef uint64_t hash
    cdef Slot* slots = <Slot*> calloc(n_slots, sizeof(Slot))
    if slots == NULL:
        raise MemoryError()
    for i in range(n_slots):
        slots[i].code = -1
    for i in range(n_before):
        if before[i].code >= 0:
            hash = mix(before[i].low, before[i].high + <uint64_t> before[i].length)
            at = <Py_ssize_t> (hash & <uint64_t> (n_slots - 1))
            while slots[at].code >= 0:
                at = (at + 1) & (n_slots - 1)
            slots[at] = before[i]
    free(before)
    all.slots, all.n_slots = slots, n_slots
    return 0


cdef int enlarge(Labels* all, Py_ssize_t n) except -1:
    """Room for n labels in all, and slots of which at most half are taken."""
    cdef const char** text
    cdef int64_t* length
    if all.n_slots < 2 * n:
        while all.n_slots < 2 * n:
            furnish(all, 4 * all.n_slots if all.n_slots > 0 else 1024)
    if all.room < n:
        text = <const char**> calloc(2 * n, sizeof(char*))
        length = <int64_t*> calloc(2 * n, sizeof(int64_t))
        if text == NULL or length == NULL:
            free(text)
            free(length)
            raise MemoryError()
        if all.n > 0:
            memcpy(text, all.text, all.n * sizeof(char*))
            memcpy(length, all.length, all.n * sizeof(int64_t))
        free(all.text)
        free(all.length)
        all.text, all.length, all.room = text, length, 2 * n
    return 0


cdef void look_up(Labels* all, Batch* batch, int64_t* codes) noexcept nogil:
    """Codes of a batch, for whose labels there is room."""
    cdef Py_ssize_t i, at
    cdef Slot* slot
    cdef Slot* key
    for i in range(batch.n):
        if batch.text[i] != NULL:
            key = &batch.key[i]
            describe(batch.text[i], batch.length[i], key)
            batch.again[i] = i > 0 and batch.text[i - 1] != NULL and key.length <= SHORT and same(key, key - 1)
            if batch.again[i]:
                continue
            batch.hash[i] = mix(key.low, key.high + <uint64_t> key.length)
            fetch(all.slots + (batch.hash[i] & <uint64_t> (all.n_slots - 1)), 0, 3)
    for i in range(batch.n):
        codes[i] = -1
        if batch.text[i] == NULL:
            continue
        if batch.again[i]:
            codes[i] = codes[i - 1]
            continue
        key = &batch.key[i]
        at = <Py_ssize_t> (batch.hash[i] & <uint64_t> (all.n_slots - 1))
        while True:
            slot = all.slots + at
            if slot.code < 0:
                slot[0] = key[0]
                slot.code = all.n
                all.text[all.n], all.length[all.n] = batch.text[i], key.length
                all.n += 1
                break
            if same(slot, key) and (
                    key.length <= SHORT or memcmp(all.text[slot.code], batch.text[i], key.length) == 0):
                break
            at = (at + 1) & (all.n_slots - 1)
        codes[i] = slot.code


cdef inline void fetch_label(const Labels* all, Py_ssize_t i) noexcept nogil:
    fetch(all.text[i if i < all.n else all.n - 1], 0, 3)


cdef bint take_keys(const Labels* all, uint64_t* keys) noexcept nogil:
    """Of each label the eight bytes after those that all have, the first the most significant; whether they increase."""
    cdef Py_ssize_t i, length, shared = all.length[0] if all.n > 0 else 0
    cdef uint64_t word
    cdef bint increase = True
    for i in range(1, all.n):
        fetch_label(all, i + AHEAD)
        length = 0
        while length < shared and length < all.length[i] and all.text[i][length] == all.text[0][length]:
            length += 1
        shared = length
    for i in range(all.n):
        fetch_label(all, i + AHEAD)
        word = 0
        length = all.length[i] - shared
        memcpy(&word, all.text[i] + shared, 8 if length > 8 else length)
        keys[i] = swapped(word)
        increase = increase and (i == 0 or keys[i] > keys[i - 1])
    return increase


cdef object sorted_order(const Labels* all):
    """Codes in the order of their labels; None where the bytes looked at do not tell it."""
    keys_array = np.empty(max(all.n, 1), dtype=np.uint64)
    cdef uint64_t[::1] keys = keys_array
    if take_keys(all, &keys[0]):
        return np.arange(all.n)
    order = np.argsort(keys_array)
    return None if (np.diff(keys_array[order]) == 0).any() else order


cdef object finish(Labels* all, int64_t[::1] codes):
    """Labels in order, as an array of objects; the codes are renumbered."""
    cdef Py_ssize_t i, n = codes.shape[0]
    cdef bint moved = False
    cdef int64_t[::1] place, rank = np.empty(max(all.n, 1), dtype=np.int64)
    labels_array = np.empty(all.n, dtype=object)
    cdef object[::1] labels = labels_array
    order = sorted_order(all)
    if order is None:
        found = [PyUnicode_DecodeUTF8(all.text[i], all.length[i], NULL) for i in range(all.n)]
        order = np.array(sorted(range(all.n), key=found.__getitem__), dtype=np.int64)
    place = order
    for i in range(all.n):
        fetch_label(all, place[i + AHEAD if i + AHEAD < all.n else i])
        labels[i] = PyUnicode_DecodeUTF8(all.text[place[i]], all.length[place[i]], NULL)
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
    all.slots, all.text, all.length = NULL, NULL, NULL
    all.n_slots, all.n, all.room = 0, 0, 0
    codes_array = np.empty(len(offsets) - 1, dtype=np.int64)
    cdef int64_t[::1] codes = codes_array
    try:
        take_rows(&all, data, offsets, missing, codes, NULL)
        labels = finish(&all, codes)
    finally:
        free(all.slots)
        free(all.text)
        free(all.length)
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
        length = all.length[i]
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
        self.all.slots, self.all.text, self.all.length = NULL, NULL, NULL
        self.all.n_slots, self.all.n, self.all.room = 0, 0, 0
        self.kept = NULL

    def __dealloc__(self):
        cdef Block* block = self.kept
        while block != NULL:
            self.kept = block.before
            free(block)
            block = self.kept
        free(self.all.slots)
        free(self.all.text)
        free(self.all.length)

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
            labels[i] = PyUnicode_DecodeUTF8(self.all.text[i], self.all.length[i], NULL)
        return labels_array

    def order(self):
        """The slots in the order of their labels, an array; None where all labels have to be compared for it."""
        return sorted_order(&self.all)


def object_codes(values):
    """`text_codes` of an array of objects; None where one of them is no text."""
    cdef Py_ssize_t n = len(values), start, i, last
    cdef Labels all
    cdef Batch batch
    cdef Py_buffer rows
    cdef PyObject** items
    all.slots, all.text, all.length = NULL, NULL, NULL
    all.n_slots, all.n, all.room = 0, 0, 0
    codes_array = np.empty(n, dtype=np.int64)
    cdef int64_t[::1] codes = codes_array
    PyObject_GetBuffer(values, &rows, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    items = <PyObject**> rows.buf
    try:
        if rows.format[0] != b"O":
            return None
        for start in range(0, n, BATCH):
            batch.n = min(BATCH, n - start)
            last = min(start + 2 * BATCH, n)
            for i in range(start + BATCH, last):
                fetch(items[i], 0, 3)
            enlarge(&all, all.n + batch.n)
            for i in range(batch.n):
                if items[start + i] == NULL or not PyUnicode_Check(<object> items[start + i]):
                    return None
                batch.text[i] = utf8_of(<object> items[start + i], &batch.length[i])
            look_up(&all, &batch, &codes[start])
        labels = finish(&all, codes)
    except UnicodeEncodeError:
        # half of a surrogate pair
        return None
    finally:
        PyBuffer_Release(&rows)
        free(all.slots)
        free(all.text)
        free(all.length)
    return codes_array, labels

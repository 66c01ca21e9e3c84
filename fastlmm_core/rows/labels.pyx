# cython: language_level=3
"""Text to codes: each row's label is looked up in a table of those met before.

Text is UTF-8, one row after the other (Arrow's strings), or Python's.  Rows are taken in batches, and the slots of a
batch, then the labels, are fetched into the cache before they are looked at: rows in any order cost nearly the same.
Rows of Python's text often share their objects: those are recognised by their addresses, and not looked at.

Labels are sorted as Python sorts text, by code points, which is the order of their bytes.
"""
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check, PyUnicode_CheckExact, PyUnicode_DecodeUTF8, PyUnicode_GET_LENGTH
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

import numpy as np

from fastlmm_core.simd.prefetch cimport FETCH, FETCH_TO_CHANGE

cdef extern from *:
    uint64_t swapped "__builtin_bswap64"(uint64_t) nogil

cdef extern from "Python.h":
    const char* utf8_of "PyUnicode_AsUTF8AndSize"(object, Py_ssize_t*) except NULL
    bint is_plain "PyUnicode_IS_COMPACT_ASCII"(object)
    const char* plain_text "(const char*) PyUnicode_1BYTE_DATA"(object)

ctypedef fused offset_t:
    int32_t
    int64_t

include "label_table.pxi"
include "sorting.pxi"
include "label_objects.pxi"

cdef enum:
    AHEAD = 24          # labels ahead of which the text of one is fetched: it stands anywhere among the rows
    KEPT = 1 << 16      # bytes of a block of text that is kept


cdef inline void fetch_label(const Labels* all, Py_ssize_t i) noexcept nogil:
    FETCH(all.text[i if i < all.n else all.n - 1])


cdef object text_of_label(const Labels* all, Py_ssize_t i):
    return PyUnicode_DecodeUTF8(all.text[i], all.length[i], NULL)


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
        found = [text_of_label(all, i) for i in range(all.n)]
        order = np.array(sorted(range(all.n), key=found.__getitem__), dtype=np.int64)
    place = order
    for i in range(all.n):
        ahead = place[i + AHEAD if i + AHEAD < all.n else i]
        if owners != NULL and owners[place[i]] != NULL:
            FETCH_TO_CHANGE(owners[ahead])
            labels[i] = <object> owners[place[i]]
        else:
            fetch_label(all, ahead)
            labels[i] = text_of_label(all, place[i])
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
    begin(&all)
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
        begin(&self.all)
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
            labels[i] = text_of_label(&self.all, i)
        return labels_array

    def order(self):
        """The slots in the order of their labels, an array; None where all labels have to be compared for it."""
        return sorted_order(&self.all)


def object_codes(values):
    """`text_codes` of an array of objects; None where one of them is no text."""
    cdef Py_ssize_t n = len(values), start, count
    cdef Labels all
    cdef Owners own
    cdef Rest rest
    cdef Py_buffer rows
    cdef PyObject** items
    cdef bint shared = True
    begin(&all)
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

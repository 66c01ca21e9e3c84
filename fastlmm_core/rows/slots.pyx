# cython: language_level=3
"""Pairs of whole numbers to slots, which are given out in the order in which pairs first occur.

Open addressing with linear probing; at most half of the places are taken.  Pairs come in batches, and the places of a
batch are fetched into the cache before the first is looked at, so that pairs in any order cost the same.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

import numpy as np

from fastlmm_core.simd.prefetch cimport FETCH

cdef enum:
    BATCH = 64

# A place of the table: the slot that it leads to, counted from 1, 0 where it is empty.
cdef struct Place:
    int64_t first, second, slot


cdef inline Py_ssize_t home(int64_t first, int64_t second, Py_ssize_t mask) noexcept nogil:
    cdef uint64_t h = <uint64_t> first * <uint64_t> 0x9E3779B97F4A7C15
    h = (h ^ (h >> 32) ^ <uint64_t> second) * <uint64_t> 0xD6E8FEB86659FD93
    return <Py_ssize_t> ((h ^ (h >> 32)) & <uint64_t> mask)


cdef class SlotTable:
    """Slots of pairs of whole numbers.

    Attributes
    ----------
    n : int
        Pairs known.
    """

    cdef Place* places
    cdef Py_ssize_t n_places        # a power of two
    cdef int64_t* known             # the pairs, by slot
    cdef Py_ssize_t room            # pairs that `known` has room for
    cdef readonly Py_ssize_t n

    def __cinit__(self):
        self.places, self.known = NULL, NULL
        self.n_places = self.room = self.n = 0
        self._provide(BATCH)

    def __dealloc__(self):
        free(self.places)
        free(self.known)

    cdef int _provide(self, Py_ssize_t n) except -1:
        """Room for n pairs in all."""
        cdef Py_ssize_t count = self.n_places if self.n_places > 0 else 256, i, at
        cdef Place* places
        cdef int64_t* known
        if self.room < n:
            known = <int64_t*> realloc(self.known, 4 * n * sizeof(int64_t))
            if known == NULL:
                raise MemoryError()
            self.known, self.room = known, 2 * n
        if self.n_places >= 2 * n:
            return 0
        while count < 2 * n:
            count *= 2
        places = <Place*> calloc(count, sizeof(Place))
        if places == NULL:
            raise MemoryError()
        with nogil:
            for i in range(self.n):
                at = home(self.known[2 * i], self.known[2 * i + 1], count - 1)
                while places[at].slot != 0:
                    at = (at + 1) & (count - 1)
                places[at] = Place(self.known[2 * i], self.known[2 * i + 1], i + 1)
        free(self.places)
        self.places, self.n_places = places, count
        return 0

    cdef void _look_up(self, Py_ssize_t n, const int64_t* first, const int64_t* second, int64_t* out) noexcept nogil:
        """Slots of a batch, for whose pairs there is room; second: NULL for zeros."""
        cdef Py_ssize_t i, mask = self.n_places - 1
        cdef Py_ssize_t[BATCH] at
        cdef int64_t b
        cdef Place* place
        for i in range(n):
            at[i] = home(first[i], second[i] if second != NULL else 0, mask)
            FETCH(self.places + at[i])
        for i in range(n):
            b = second[i] if second != NULL else 0
            place = self.places + at[i]
            while place.slot != 0 and (place.first != first[i] or place.second != b):
                at[i] = (at[i] + 1) & mask
                place = self.places + at[i]
            if place.slot == 0:
                self.known[2 * self.n], self.known[2 * self.n + 1] = first[i], b
                self.n += 1
                place[0] = Place(first[i], b, self.n)
            out[i] = place.slot - 1

    def slots(self, const int64_t[::1] first, const int64_t[::1] second=None):
        """The slot of each pair; pairs that are new get the next ones.

        Parameters
        ----------
        first, second : (n,) int64 arrays
            By default the second numbers are 0.
        """
        cdef Py_ssize_t n = first.shape[0], start, count
        out_array = np.empty(n, dtype=np.int64)
        cdef int64_t[::1] out = out_array
        cdef const int64_t* other = &second[0] if second is not None and n > 0 else NULL
        for start in range(0, n, BATCH):
            count = min(BATCH, n - start)
            self._provide(self.n + count)
            with nogil:
                self._look_up(count, &first[start], other + start if other != NULL else NULL, &out[start])
        return out_array

    def pairs(self):
        """The pairs by slot (n, 2)."""
        cdef Py_ssize_t i
        out_array = np.empty((self.n, 2), dtype=np.int64)
        cdef int64_t[:, ::1] out = out_array
        for i in range(self.n):
            out[i, 0], out[i, 1] = self.known[2 * i], self.known[2 * i + 1]
        return out_array

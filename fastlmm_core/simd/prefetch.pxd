# Memory that will be read or changed soon, on its way into the cache.

cdef extern from "prefetch.h":
    void FETCH(const void*) nogil
    void FETCH_TO_CHANGE(const void*) nogil
    void FETCH_FAR(const void*) nogil

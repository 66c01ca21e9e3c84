/* Let a line of memory be on its way into the cache; nothing where the compiler cannot ask for that. */
#ifndef FASTLMM_PREFETCH_H
#define FASTLMM_PREFETCH_H

#if defined(__GNUC__)
#define FETCH(place) __builtin_prefetch(place)
#define FETCH_TO_CHANGE(place) __builtin_prefetch(place, 1)
/* to the second cache, which can wait for more at a time than the first one */
#define FETCH_FAR(place) __builtin_prefetch(place, 0, 2)
#else
#define FETCH(place) ((void)(place))
#define FETCH_TO_CHANGE(place) ((void)(place))
#define FETCH_FAR(place) ((void)(place))
#endif

#endif

/* Threads that work through the same phases: each takes tasks of a phase until none is left, and waits for the others.
 *
 * What a task computes depends on its number alone, so that results do not depend on who took it.
 */
#ifndef FASTLMM_CREW_H
#define FASTLMM_CREW_H

#ifdef _WIN32
#include <windows.h>
#define CREW_YIELD() SwitchToThread()
#else
#include <sched.h>
#define CREW_YIELD() sched_yield()
#endif

typedef struct {
    int size;       /* threads */
    int arrived;    /* of them at the end of the phase */
    int phase;
    int next;       /* task that nobody has taken */
    int failed;     /* set by whoever cannot go on: all stop where they wait */
} Crew;

static inline void crew_begin(Crew *crew, int size)
{
    crew->size = size;
    crew->arrived = crew->phase = crew->next = crew->failed = 0;
}

/* The number of a task for the caller alone. */
static inline int crew_task(Crew *crew)
{
    return __atomic_fetch_add(&crew->next, 1, __ATOMIC_RELAXED);
}

static inline void crew_fail(Crew *crew)
{
    __atomic_store_n(&crew->failed, 1, __ATOMIC_RELEASE);
}

/* The end of a phase: zero when all are there, and what each has written can be read by all; one where someone failed. */
static inline int crew_wait(Crew *crew)
{
    int phase = __atomic_load_n(&crew->phase, __ATOMIC_ACQUIRE);
    int patience = 0;
    if (__atomic_add_fetch(&crew->arrived, 1, __ATOMIC_ACQ_REL) == crew->size) {
        crew->arrived = 0;
        crew->next = 0;
        __atomic_store_n(&crew->phase, phase + 1, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&crew->phase, __ATOMIC_ACQUIRE) == phase) {
        if (__atomic_load_n(&crew->failed, __ATOMIC_ACQUIRE))
            return 1;
        if (++patience > 1000)
            CREW_YIELD();
    }
    return __atomic_load_n(&crew->failed, __ATOMIC_ACQUIRE);
}

#endif

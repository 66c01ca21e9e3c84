/* Parts of a job on several threads, the calling one among them.
 *
 * Threads are started for the job and end with it: nothing is left behind that a fork or an exit of the process would
 * have to know of.  Starting and joining one takes some ten microseconds, so jobs are worth a thread from about a
 * hundred on.  Parts are taken one by one, so that a thread that is held up holds up no more than one; what they write
 * must not depend on which thread has which.
 */
#ifndef FASTLMM_PARTS_H
#define FASTLMM_PARTS_H

#include <stddef.h>

typedef void (*part_t)(void *job, ptrdiff_t part, ptrdiff_t worker);

#if defined(_WIN32)

static inline void run_parts(part_t run, void *job, ptrdiff_t parts, ptrdiff_t jobs) {
    (void)jobs;
    for (ptrdiff_t part = 0; part < parts; part++) run(job, part, 0);
}

#else

#include <pthread.h>

#define MOST_WORKERS 64

typedef struct {
    part_t run;
    void *job;
    ptrdiff_t parts;
    ptrdiff_t next;
} parts_queue;

typedef struct {
    parts_queue *queue;
    ptrdiff_t worker;
} parts_worker;

static void *parts_work(void *given) {
    parts_worker *own = given;
    parts_queue *queue = own->queue;
    for (;;) {
        ptrdiff_t part = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
        if (part >= queue->parts) return 0;
        queue->run(queue->job, part, own->worker);
    }
}

/* run(job, part, worker) for all parts; worker: 0 to jobs - 1 or MOST_WORKERS - 1, whose parts run one after the
   other. */
static inline void run_parts(part_t run, void *job, ptrdiff_t parts, ptrdiff_t jobs) {
    parts_queue queue = {run, job, parts, 0};
    parts_worker workers[MOST_WORKERS];
    pthread_t threads[MOST_WORKERS];
    ptrdiff_t started = 1, i;
    if (jobs > parts) jobs = parts;
    if (jobs > MOST_WORKERS) jobs = MOST_WORKERS;
    for (i = 0; i < jobs || i < 1; i++) workers[i] = (parts_worker){&queue, i};
    /* where no more threads can be had, those that run do the work */
    while (started < jobs && pthread_create(&threads[started], 0, parts_work, &workers[started]) == 0) started++;
    parts_work(&workers[0]);
    for (i = 1; i < started; i++) pthread_join(threads[i], 0);
}

#endif
#endif

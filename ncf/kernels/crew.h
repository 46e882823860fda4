/* Threads that work on one call together. Tasks are taken in turn by whoever is free, so a task may depend on its
   number alone: then the result has the same bits for any number of threads. */

#include <pthread.h>
#include <stdatomic.h>

#define SPINS 2000 /* looks at a phase before a thread gives its core to others and sleeps */

typedef struct {
    atomic_llong next; /* task of this phase */
    atomic_int arrived, phase, threads, sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} Crew;

/* The next task of this phase; they end where the caller knows. */
static int64_t crew_task(Crew *c) { return atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed); }

static void crew_await(Crew *c, int phase) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&c->phase, memory_order_acquire) != phase) return;
#ifdef __SSE__
        _mm_pause();
#endif
    }
    pthread_mutex_lock(&c->mutex);
    atomic_fetch_add(&c->sleepers, 1);
    while (atomic_load(&c->phase) == phase) pthread_cond_wait(&c->changed, &c->mutex);
    atomic_fetch_sub(&c->sleepers, 1);
    pthread_mutex_unlock(&c->mutex);
}

static void crew_enter(Crew *c, int phase) {
    atomic_store(&c->phase, phase);
    if (!atomic_load(&c->sleepers)) return; /* whoever adds itself later sees the new phase */
    pthread_mutex_lock(&c->mutex);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

/* Until all have come here; then the next phase begins. */
static void crew_meet(Crew *c) {
    const int phase = atomic_load_explicit(&c->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&c->arrived, 1, memory_order_acq_rel) + 1 < atomic_load(&c->threads)) {
        crew_await(c, phase);
        return;
    }
    atomic_store(&c->arrived, 0);
    atomic_store(&c->next, 0);
    crew_enter(c, phase + 1);
}

typedef struct {
    Crew *crew;
    void (*work)(void *, int64_t);
    void *job;
    int64_t number;
} Hand;

static void without_denormals(const Hand *h) {
#ifdef __SSE__
    const unsigned int control = _mm_getcsr();
    _mm_setcsr(control | 0x8040); /* numbers below 1e-38 are zero: moments would linger there, and be slow */
#endif
    h->work(h->job, h->number);
#ifdef __SSE__
    _mm_setcsr(control);
#endif
}

static void *hand_main(void *given) {
    Hand *h = given;
    crew_await(h->crew, 0); /* until it is known how many threads there are */
    without_denormals(h);
    return 0;
}

#define MAX_THREADS 256

/* Call work(job, number) on so many threads, of which the caller is number 0; on fewer where there are no more. */
static void crew_run(Crew *c, int threads, void (*work)(void *, int64_t), void *job) {
    pthread_t ids[MAX_THREADS];
    Hand hands[MAX_THREADS];
    int started = 1;
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->mutex, 0);
    pthread_cond_init(&c->changed, 0);
    hands[0] = (Hand){c, work, job, 0};
    for (; started < threads; started++) {
        hands[started] = (Hand){c, work, job, started};
        if (pthread_create(&ids[started], 0, hand_main, &hands[started])) break;
    }
    atomic_store(&c->threads, started);
    crew_enter(c, 1);
    without_denormals(&hands[0]);
    for (int t = 1; t < started; t++) pthread_join(ids[t], 0);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->mutex);
}

/* Threads that work on one call together, phase by phase. The tasks of a phase are cut into a share for each thread,
   which takes its own first: its caches have what the share's tasks of the phase before left. Then it takes those of
   others, so a task may depend on its share and number alone: the result has the same bits whoever works. A phase ends
   when its tasks are done, not when all threads have come: none waits for a thread that sleeps, has yet to start, or lost
   its core between two tasks. */

#include <pthread.h>
#include <stdatomic.h>

#define SPINS 1000 /* looks at a phase before a thread gives its core to others and sleeps */
#define MAX_THREADS 256

typedef struct {
    atomic_llong ticket;   /* the phase · 2³², and the next task of it */
    atomic_llong limit[2]; /* how many tasks a phase has; of even phases and of odd ones */
    atomic_llong done;     /* tasks of this phase */
    char padding[96];      /* from the share of another thread, by two lines of the cache */
} Share;

typedef struct {
    atomic_llong phase;
    char padding[120];
    atomic_int unfinished, sleepers, users; /* shares of this phase; threads */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int64_t phases, shares;
    int64_t (*tasks)(void *, int64_t, int64_t); /* of a phase and a share; is called when all before it is done */
    void (*work)(void *, int64_t, int64_t, int64_t, int64_t);
    void *job;
    Share share[];
} Crew;

typedef struct {
    Crew *crew;
    int64_t number;
} Worker;

static int64_t crew_phase(Crew *c) { return atomic_load(&c->phase); }

/* The next task of a share in a phase, or -1 if there is none, or the phase is over. */
static int64_t crew_task(Share *s, int64_t phase) {
    long long ticket = atomic_load(&s->ticket);
    while (ticket >> 32 == phase) {
        const int64_t task = ticket & 0xffffffff;
        if (task >= atomic_load(&s->limit[phase & 1])) return -1;
        if (atomic_compare_exchange_weak(&s->ticket, &ticket, ticket + 1)) return task;
    }
    return -1;
}

static void crew_await(Crew *c, int64_t phase) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (crew_phase(c) != phase) return;
#ifdef __SSE__
        _mm_pause();
#endif
    }
    pthread_mutex_lock(&c->mutex);
    atomic_fetch_add(&c->sleepers, 1);
    while (crew_phase(c) == phase) pthread_cond_wait(&c->changed, &c->mutex);
    atomic_fetch_sub(&c->sleepers, 1);
    pthread_mutex_unlock(&c->mutex);
}

static void crew_enter(Crew *c, int64_t phase) {
    int filled = 0;
    for (int64_t n = 0; n < c->shares; n++) {
        const int64_t tasks = phase < c->phases ? c->tasks(c->job, phase, n) : 0;
        filled += tasks > 0;
        atomic_store(&c->share[n].limit[phase & 1], tasks);
        atomic_store(&c->share[n].done, 0);
    }
    atomic_store(&c->unfinished, filled);
    for (int64_t n = 0; n < c->shares; n++) atomic_store(&c->share[n].ticket, phase << 32);
    atomic_store(&c->phase, phase);
    if (!atomic_load(&c->sleepers)) return; /* whoever adds itself later sees the new phase */
    pthread_mutex_lock(&c->mutex);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

/* All phases. Between its tasks a thread uses nothing but the crew: when the last phase is over, the job may go. */
static void crew_phases(const Worker *h) {
    Crew *c = h->crew;
    int64_t phase, task;
    while ((phase = crew_phase(c)) < c->phases) {
        for (int64_t n = 0; n < c->shares; n++) {
            const int64_t number = (h->number + n) % c->shares;
            Share *s = &c->share[number];
            while ((task = crew_task(s, phase)) >= 0) {
                c->work(c->job, h->number, phase, number, task);
                if (atomic_fetch_add(&s->done, 1) + 1 < atomic_load(&s->limit[phase & 1])) continue;
                if (atomic_fetch_sub(&c->unfinished, 1) == 1) crew_enter(c, phase + 1);
            }
        }
        crew_await(c, phase);
    }
}

static void crew_leave(Crew *c) {
    if (atomic_fetch_sub(&c->users, 1) > 1) return;
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

static void *worker_main(void *given) {
    const Worker h = *(Worker *)given;
    free(given);
    crew_phases(&h);
    crew_leave(h.crew);
    return 0;
}

/* Call work(job, thread, phase, share, task) for all tasks of all phases, one phase after the other, with so many threads,
   of which the caller is number 0; with fewer where there are no more. Returns 0 for want of memory. */
static int crew_run(int threads, int64_t phases, int64_t (*tasks)(void *, int64_t, int64_t),
                    void (*work)(void *, int64_t, int64_t, int64_t, int64_t), void *job) {
    const Worker own = {calloc(1, sizeof(Crew) + sizeof(Share) * threads), 0};
    Crew *c = own.crew;
    pthread_attr_t detached;
    if (!c) return 0;
    c->phases = phases, c->shares = threads, c->tasks = tasks, c->work = work, c->job = job;
    atomic_store(&c->users, 1);
    pthread_mutex_init(&c->mutex, 0);
    pthread_cond_init(&c->changed, 0);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    crew_enter(c, 0);
    for (int t = 1; t < threads; t++) {
        pthread_t id;
        Worker *worker = malloc(sizeof *worker);
        if (!worker) break;
        *worker = (Worker){c, t};
        atomic_fetch_add(&c->users, 1);
        if (!pthread_create(&id, &detached, worker_main, worker)) continue;
        atomic_fetch_sub(&c->users, 1);
        free(worker);
        break;
    }
    pthread_attr_destroy(&detached);
    crew_phases(&own);
    crew_leave(c);
    return 1;
}

#define FINE INT64_MAX /* what a piece of a call returns if nothing is wrong */

/* A call that is one phase: work on the users of the job, so many at a time. */
typedef struct {
    int64_t (*work)(const void *job, int64_t from, int64_t to);
    const void *job;
    int64_t users, at_once, threads;
    atomic_llong least; /* of what the pieces returned */
} Pieces;

/* The number of the first piece in a share. */
static int64_t pieces_before(const Pieces *p, int64_t share) {
    return (p->users + p->at_once - 1) / p->at_once * share / p->threads;
}

static int64_t pieces_of(void *given, int64_t phase, int64_t share) {
    (void)phase;
    return pieces_before(given, share + 1) - pieces_before(given, share);
}

static void do_piece(void *given, int64_t thread, int64_t phase, int64_t share, int64_t task) {
    Pieces *p = given;
    const int64_t from = (pieces_before(p, share) + task) * p->at_once, to = from + p->at_once;
    const long long answer = p->work(p->job, from, to < p->users ? to : p->users);
    long long least = atomic_load(&p->least);
    (void)thread, (void)phase;
    while (answer < least && !atomic_compare_exchange_weak(&p->least, &least, answer)) {}
}

/* The least of what `work` returns for pieces of some users, with at most so many threads; -2 for want of memory. */
static int64_t in_pieces(int64_t threads, int64_t users, int64_t at_once,
                         int64_t (*work)(const void *job, int64_t from, int64_t to), const void *job) {
    Pieces p = {work, job, users, at_once > 1 ? at_once : 1, 1, FINE};
    const int64_t pieces = (users + p.at_once - 1) / p.at_once, most = threads < MAX_THREADS ? threads : MAX_THREADS;
    p.threads = pieces < most ? pieces : most;
    if (p.threads < 1) return FINE;
    return crew_run((int)p.threads, 1, pieces_of, do_piece, &p) ? p.least : -2;
}

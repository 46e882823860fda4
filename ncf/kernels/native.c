/* ncf's kernels for a CPU, in plain C with the vector extension of GCC and Clang. They are called through ctypes by
   native_scoring.py (scores and ranks) and ncf/training/native_step.py (training steps); native.py has the layouts.

   Scores: what PyTorch does layer by layer over millions of pairs is done for PAIRS candidates of one user at a time:
   add the halves of the first layer, go through the small layers, add the product and the biases. No intermediate
   result leaves the cache; of a ranking, the scores do not either.

   Training steps: lookups, towers, loss, gradients and updates of several batches in one call, on all cores. A step costs
   what it reads: gradients are of the rows of its batch. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#define PAIRS 24                 /* candidates in a block; a multiple of 12 */
#define CACHE_FLOATS (32 * 1024) /* floats of item rows that stay in the second-level cache */
#define PAIRS_PER_PIECE (1 << 14) /* pairs that a thread scores at a time: fewer are not worth starting another for */
#define USERS_PER_PIECE 24       /* users that a thread takes at least where all have the same items */
#define PAIRS_PER_BLOCK 120      /* pairs of a training batch whose activations stay in the cache */
#define POSITIVES_PER_BLOCK 64   /* positives of a block whose logits with the shared negatives stay in the cache */
#define PAIRS_PER_SLOT 240       /* pairs of a piece of a batch, at least */
#define MAX_SLOTS 64             /* pieces of a batch, at most: more threads have nothing to do */
#define ROWS_PER_TASK 64         /* rows that a thread takes at a time */
#define PREFETCHED_ROWS 8        /* rows that memory is asked for before they are read */
#define MIN_LENGTH 1e-12f        /* length that a cosine divides by at least, as PyTorch's normalize does */
#define MAX_LAYERS 16
#define NCF_ABI 9 /* ABI of native.py: raise both when a function's arguments or a structure's meaning change */

typedef float float4 __attribute__((vector_size(16), aligned(4), may_alias));

/* users, items   [U, H + F] and [I, H + F]: the half of the first layer beside the row of the product, either
                  padded with zeros to a multiple of the vector's width, `hidden` and `factors`.
   weights[l]     panels of 2 · lanes outputs (the last perhaps of lanes), each [inputs, outputs of the panel]; inputs
                  are those of the first layer, or the padded outputs of the layer before.
   biases[l]      [outputs[l]], padded with zeros as the weights are; head: [outputs of the last], or [hidden]. */
typedef struct {
    const float *users, *items, *user_bias, *item_bias, *head; /* the biases, and the head, may be absent */
    const float *const *weights, *const *biases;
    const int64_t *outputs;
    int64_t num_users, num_items, hidden, factors, inputs, layers, widest;
    float bias;
} Tables;

/* How many items' rows stay in the cache, in whole blocks. */
static int64_t cached_items(const Tables *t) {
    return CACHE_FLOATS / (t->hidden + t->factors + 1) / PAIRS * PAIRS + PAIRS;
}

enum { ADAMW, ADAGRAD, ROWWISE, SGD, ADAM }; /* rules, in the order of native.py */
enum { AS_IT_IS, RELU, RELU_BACK }; /* what happens to a product */
enum { BCE, BPR, SOFTMAX, CONTRASTIVE };     /* losses, in the order of native.py */

/* A parameter in PyTorch's layout, its state, and its rule of update. Of a table, `row` numbers make a row. One that
   stays as it is has a size of 0. */
typedef struct {
    float *value, *mean, *square;
    int64_t size, row;
    float rate, decay, target;
} Parameter;

/* Without GMF factors is 0, without an MLP layers; a dot product has no head weights, and after the factors of a row
   its bias, if it is biased. `cosine` divides the rows of the product by their lengths. Corrections, which may be
   absent, are what the softmax takes from the logit of a negative: [items], less [users]. */
typedef struct {
    Parameter user_gmf, item_gmf, user_mlp, item_mlp, gmf_head, mlp_head, bias;
    Parameter weights[MAX_LAYERS], biases[MAX_LAYERS];
    int64_t outputs[MAX_LAYERS], num_users, num_items, factors, biased, cosine, dim, layers, rule, loss;
    const float *item_correction, *user_correction;
    float beta1, beta2, epsilon, temperature, margin, weight;
} Model;

/* Some batches. users: [batches, positives]; items: [batches, positives, samples_per_positive], a positive before its
   negatives; shared: [batches, num_shared], negatives of every positive of a batch, less those that its user has seen:
   the places p · num_shared + s in `seen`, ascending, of batch k from seen_offsets[k] on. Of each batch: rate_factors,
   by which rates are multiplied; adam_rate_factors, the same over AdamW's first bias correction; moment_corrections,
   one over the root of the second. */
typedef struct {
    const int64_t *users, *items, *shared, *seen, *seen_offsets;
    const float *rate_factors, *adam_rate_factors, *moment_corrections;
    float *losses;
    int64_t batches, positives, samples_per_positive, num_shared;
} Chunk;

typedef struct {
    float rate, adam_rate, moment;
} StepScales;

/* The version of this interface, and the sizes of its structures in the order of native.py. */
int ncf_abi(int64_t *sizes, int count) {
    const int64_t own[] = {sizeof(Tables), sizeof(Parameter), sizeof(Model), sizeof(Chunk)};
    for (int s = 0; s < count; s++) sizes[s] = s < (int)(sizeof own / sizeof *own) ? own[s] : 0;
    return NCF_ABI;
}

#include "crew.h"
#include "draw.h"
#include "rows.h"

#ifdef NCF_ANY_PROCESSOR /* all widths on any processor, to test them */
#define NEEDS(features)
#else
#define NEEDS(features) __attribute__((target(features)))
#endif

#define LANES 4
#define TARGET
#include "lanes.h"
#ifdef __x86_64__
#define LANES 8
#define TARGET NEEDS("avx2,fma")
#include "lanes.h"
#define LANES 16
#define TARGET NEEDS("avx512f")
#include "lanes.h"
#endif

/* The widest vectors, in floats, that this processor has. */
int ncf_lanes(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

#define HUGE_PAGE ((uintptr_t)1 << 21)

/* Have memory in pages of 2 MiB where the system does so when asked: rows at random cost fewer looks at its maps. */
void ncf_use_huge_pages(void *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t from = ((uintptr_t)memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const uintptr_t to = ((uintptr_t)memory + (uintptr_t)bytes) / HUGE_PAGE * HUGE_PAGE;
    if (from >= to || madvise((void *)from, to - from, MADV_HUGEPAGE)) return;
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1: what is there already, too; older systems know no such number */
#endif
    madvise((void *)from, to - from, MADV_COLLAPSE);
#else
    (void)memory, (void)bytes;
#endif
}

typedef void (*Score)(const Tables *, const int64_t *users, int64_t num_users, const int64_t *candidates, int64_t step,
                      int64_t width, float *scratch, float *scores);

static Score score_of(int lanes) {
#ifdef __x86_64__
    if (lanes == 16) return score16;
    if (lanes == 8) return score8;
#endif
    (void)lanes;
    return score4;
}

static float *scratch_of(const Tables *t, int lanes) { return malloc(sizeof(float) * PAIRS * (2 * t->widest + lanes)); }

/* How many users make a piece of work: many where all have the same items, whose rows are then read once. */
static int64_t users_at_once(int64_t width, int same) {
    const int64_t users = PAIRS_PER_PIECE / (width + 1) + 1;
    return same && users < USERS_PER_PIECE ? USERS_PER_PIECE : users;
}

/* The place of the first user without a row, or -1. */
static int64_t unknown_user(const Tables *t, const int64_t *users, int64_t num_users) {
    for (int64_t u = 0; u < num_users; u++)
        if (users[u] < 0 || users[u] >= t->num_users) return u;
    return -1;
}

typedef struct {
    const Tables *t;
    int lanes;
    const int64_t *users, *candidates;
    int64_t num_users, step, width;
    float *scores;
} Scored;

/* The number of users and the place of the first unknown item among the candidates of some, or FINE. */
static int64_t unknown_item(const Scored *s, int64_t from, int64_t to) {
    for (int64_t u = from; u < to; u++)
        for (int64_t c = 0; c < s->width; c++)
            if (s->candidates[u * s->step + c] >= s->t->num_items) return s->num_users + u * s->width + c;
    return FINE;
}

static int64_t score_piece(const void *job, int64_t from, int64_t to) {
    const Scored *s = job;
    const int64_t unknown = s->step ? unknown_item(s, from, to) : FINE;
    if (unknown != FINE) return unknown;
    float *scratch = scratch_of(s->t, s->lanes);
    if (!scratch) return -2;
    score_of(s->lanes)(s->t, s->users + from, to - from, s->candidates + from * s->step, s->step, s->width, scratch,
                       s->scores + from * s->width);
    free(scratch);
    return FINE;
}

/* candidates: user u's begin at u * step; scores: [num_users, width].
   Returns -1; or where the first unknown user is; or num_users + the place of the first unknown item; or -2 for want
   of memory. */
int64_t ncf_score(const Tables *t, int lanes, int64_t threads, const int64_t *users, int64_t num_users,
                  const int64_t *candidates, int64_t step, int64_t width, float *scores) {
    const Scored s = {t, lanes, users, candidates, num_users, step, width, scores};
    const int64_t user = unknown_user(t, users, num_users), item = step || user != -1 ? FINE : unknown_item(&s, 0, 1);
    if (user != -1 || item != FINE) return user != -1 ? user : item;
    const int64_t wrong = in_pieces(threads, num_users, users_at_once(width, !step), score_piece, &s);
    return wrong == FINE ? -1 : wrong;
}

#include "sift.h"
#include "rank.h"

/* Train on a chunk with so many threads, at the same bits for any number of them. Returns -1; or where the first unknown
   user is; or the number of users plus the place of the first unknown item, of the items and then of the shared ones; or
   -2 for want of memory. */
int64_t ncf_train(const Model *m, const Chunk *c, int lanes, int threads) {
    const int64_t count = c->batches * c->positives, items = count * c->samples_per_positive,
                  shared = c->batches * c->num_shared;
    for (int64_t u = 0; u < count; u++)
        if (c->users[u] < 0 || c->users[u] >= m->num_users) return u;
    for (int64_t i = 0; i < items; i++)
        if (c->items[i] < 0 || c->items[i] >= m->num_items) return count + i;
    for (int64_t i = 0; i < shared; i++)
        if (c->shared[i] < 0 || c->shared[i] >= m->num_items) return count + items + i;
    threads = threads > MAX_THREADS ? MAX_THREADS : threads;
#ifdef __x86_64__
    if (lanes == 16) return train16(m, c, threads);
    if (lanes == 8) return train8(m, c, threads);
#endif
    (void)lanes;
    return train4(m, c, threads);
}

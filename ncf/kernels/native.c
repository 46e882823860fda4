/* ncf's kernels for a CPU, in plain C with the vector extension of GCC and Clang. They are called through ctypes by
   native_scoring.py (scores and ranks) and ncf/training/native_step.py (training steps); native.py has the layouts.

   Scores: what PyTorch does layer by layer over millions of pairs is done for PAIRS candidates of one user at a time:
   add the halves of the first layer, go through the small layers, add the product and the biases. No intermediate
   result leaves the cache; of a ranking, the scores do not either.

   Training steps: lookups, towers, loss, gradients and Adam of several batches in one call, TRAINED pairs at a time. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#define PAIRS 24           /* candidates in a block; a multiple of 12 */
#define CACHED (32 * 1024) /* floats of item rows that stay in the second-level cache */
#define TRAINED 240        /* pairs of a training batch whose activations stay in the cache */
#define MAX_LAYERS 16
#define NCF_ABI 2 /* ABI of native.py: raise both when a function's arguments or a structure's meaning change */

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

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
static int64_t cached_items(const Tables *t) { return CACHED / (t->hidden + t->factors + 1) / PAIRS * PAIRS + PAIRS; }

typedef struct {
    float *value, *mean, *square, *gradient; /* mean and square are Adam's; the gradient is zero between steps */
    int64_t size;
} Parameter;

/* A model in PyTorch's layout. Without GMF factors is 0, without an MLP layers; a dot product has no head weights, and
   after the factors of a row its bias. The head's weights are those of the product, then those of the last layer. */
typedef struct {
    Parameter user_gmf, item_gmf, user_mlp, item_mlp, head, bias, weights[MAX_LAYERS], biases[MAX_LAYERS];
    const Parameter *all[6 + 2 * MAX_LAYERS];
    int64_t outputs[MAX_LAYERS], num_users, num_items, factors, gmf_row, biased, dim, layers, parameters, pairwise;
} Model;

typedef struct {
    float beta1, beta2, epsilon, weight_decay;
} Adam;

/* The version of this interface, and the sizes of its structures in the order of native.py. */
int ncf_abi(int64_t *sizes, int count) {
    const int64_t own[] = {sizeof(Tables), sizeof(Parameter), sizeof(Model), sizeof(Adam)};
    for (int s = 0; s < count; s++) sizes[s] = s < (int)(sizeof own / sizeof *own) ? own[s] : 0;
    return NCF_ABI;
}

/* Mean of −log σ(positive) and −log σ(−negative) over samples. The slopes are those of the mean over `positives`. */
static double pointwise_loss(const float *logits, float *slopes, int64_t groups, int64_t each, int64_t positives) {
    const float share = 1.0f / (float)(positives * each);
    double loss = 0.0, product = 1.0;
    for (int64_t p = 0; p < groups * each; p++) {
        const float x = p % each ? logits[p] : -logits[p]; /* the loss is log(1 + eˣ) */
        const float e = expf(-fabsf(x)), larger = 1.0f / (1.0f + e);
        loss += x > 0.0f ? x : 0.0f;
        product *= 1.0 + e; /* one logarithm for many factors, none above 2 */
        if (p % 512 == 511) loss += log(product), product = 1.0;
        const float slope = share * (x > 0.0f ? larger : e * larger);
        slopes[p] = p % each ? slope : -slope;
    }
    return (loss + log(product)) * share;
}

/* Mean of −log σ(positive − negative) over pairs of them. */
static double pairwise_loss(const float *logits, float *slopes, int64_t groups, int64_t each, int64_t positives) {
    const float share = 1.0f / (float)(positives * (each - 1));
    double loss = 0.0;
    for (int64_t g = 0; g < groups; g++, logits += each, slopes += each) {
        slopes[0] = 0.0f;
        for (int64_t p = 1; p < each; p++) {
            const float x = logits[p] - logits[0], e = expf(-fabsf(x)), larger = 1.0f / (1.0f + e);
            loss += (x > 0.0f ? x : 0.0f) + log1pf(e);
            slopes[p] = share * (x > 0.0f ? larger : e * larger);
            slopes[0] -= slopes[p];
        }
    }
    return loss * share;
}

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

/* The place of the first user without a row, or -1. */
static int64_t unknown_user(const Tables *t, const int64_t *users, int64_t num_users) {
    for (int64_t u = 0; u < num_users; u++)
        if (users[u] < 0 || users[u] >= t->num_users) return u;
    return -1;
}

/* candidates: user u's begin at u * step; scores: [num_users, width].
   Returns -1; or where the first unknown user is; or num_users + the place of the first unknown item; or -2 for want
   of memory. */
int64_t ncf_score(const Tables *t, int lanes, const int64_t *users, int64_t num_users, const int64_t *candidates,
                  int64_t step, int64_t width, float *scores) {
    const int64_t unknown = unknown_user(t, users, num_users);
    if (unknown != -1) return unknown;
    for (int64_t u = 0; u < (step ? num_users : 1); u++)
        for (int64_t c = 0; c < width; c++)
            if (candidates[u * step + c] >= t->num_items) return num_users + u * width + c;
    float *scratch = scratch_of(t, lanes);
    if (!scratch) return -2;
    score_of(lanes)(t, users, num_users, candidates, step, width, scratch, scores);
    free(scratch);
    return -1;
}

#include "rank.h"

/* users: [batches, positives]; items: [batches, positives, each], a positive before its negatives. rates: Adam's with
   its first bias correction; corrections: its second. Returns -1; or where the first unknown user is; or the number
   of users plus the place of the first unknown item; or -2 for want of memory. */
int64_t ncf_train(const Model *m, const Adam *a, int lanes, const int64_t *users, const int64_t *items,
                  int64_t batches, int64_t positives, int64_t each, const float *rates, const float *corrections,
                  float *losses) {
    const int64_t count = batches * positives;
    for (int64_t u = 0; u < count; u++)
        if (users[u] < 0 || users[u] >= m->num_users) return u;
    for (int64_t i = 0; i < count * each; i++)
        if (items[i] < 0 || items[i] >= m->num_items) return count + i;
#ifdef __SSE__
    const unsigned int control = _mm_getcsr();
    _mm_setcsr(control | 0x8040); /* numbers below 1e-38 are zero: Adam's means would linger there, and be slow */
#endif
    int64_t failed;
#ifdef __x86_64__
    if (lanes == 16)
        failed = train16(m, a, users, items, batches, positives, each, rates, corrections, losses);
    else if (lanes == 8)
        failed = train8(m, a, users, items, batches, positives, each, rates, corrections, losses);
    else
#endif
        failed = train4(m, a, users, items, batches, positives, each, rates, corrections, losses);
#ifdef __SSE__
    _mm_setcsr(control);
#endif
    return failed;
}

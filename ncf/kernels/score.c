/* Scores of user-item pairs on a CPU, the whole network at once: no intermediate result leaves the cache.

   What PyTorch does layer by layer over millions of pairs is done here for PAIRS candidates of one user at a time:
   add the halves of the first layer, go through the small layers, add the product and the biases. It is plain C with
   GCC's vector extension (GCC and Clang), called through ctypes by native.py, which knows the layout:

   users, items   [U, H + F] and [I, H + F]: the half of the first layer beside the row of the product, either
                  padded with zeros to a multiple of the vector's width, `hidden` and `factors`.
   weights[l]     panels of 2 · lanes outputs (the last perhaps of lanes), each [inputs, outputs of the panel]; inputs
                  are those of the first layer, or the padded outputs of the layer before.
   biases[l]      [outputs[l]], padded with zeros as the weights are; head: [outputs of the last], or [hidden]. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define PAIRS 24           /* candidates in a block; a multiple of 12 */
#define CACHED (32 * 1024) /* floats of item rows that stay in the second-level cache */

typedef struct {
    const float *users, *items, *user_bias, *item_bias, *head; /* the biases, and the head, may be absent */
    const float *const *weights, *const *biases;
    const int64_t *outputs;
    int64_t num_users, num_items, hidden, factors, inputs, layers, widest;
    float bias;
} Tables;

#ifdef NCF_ANY_PROCESSOR /* all widths on any processor, to test them */
#define NEEDS(features)
#else
#define NEEDS(features) __attribute__((target(features)))
#endif

#define LANES 4
#define TARGET
#include "score_lanes.h"
#ifdef __x86_64__
#define LANES 8
#define TARGET NEEDS("avx2,fma")
#include "score_lanes.h"
#define LANES 16
#define TARGET NEEDS("avx512f")
#include "score_lanes.h"
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

/* candidates: user u's begin at u * step; scores: [num_users, width].
   Returns -1; or where the first unknown user is; or num_users + the place of the first unknown item; or -2 for want
   of memory. */
int64_t ncf_score(const Tables *t, int lanes, const int64_t *users, int64_t num_users, const int64_t *candidates,
                  int64_t step, int64_t width, float *scores) {
    for (int64_t u = 0; u < num_users; u++)
        if (users[u] < 0 || users[u] >= t->num_users) return u;
    for (int64_t u = 0; u < (step ? num_users : 1); u++)
        for (int64_t c = 0; c < width; c++)
            if (candidates[u * step + c] >= t->num_items) return num_users + u * width + c;
    float *scratch = malloc(sizeof(float) * PAIRS * (2 * t->widest + lanes));
    if (!scratch) return -2;
#ifdef __x86_64__
    if (lanes == 16)
        score16(t, users, num_users, candidates, step, width, scratch, scores);
    else if (lanes == 8)
        score8(t, users, num_users, candidates, step, width, scratch, scores);
    else
#endif
        score4(t, users, num_users, candidates, step, width, scratch, scores);
    free(scratch);
    return -1;
}

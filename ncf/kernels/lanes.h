/* Vectors of LANES floats on processors that have what TARGET says, and the two kernels written with them. native.c
   includes this once for each width, whose functions have the width in their names. */

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAMED(name) JOIN(name, LANES)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define UNROLL _Pragma("GCC unroll 12")

#define vec NAMED(vec)
#define bits NAMED(bits)
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

INLINE vec NAMED(load)(const float *from) { return *(const vec *)from; }
INLINE void NAMED(store)(float *to, vec value) { *(vec *)to = value; }

/* Not a maximum: a NaN has to stay one, so that a model that has diverged is seen. */
INLINE vec NAMED(relu)(vec x) { return (vec)((bits)x & ~(bits)(x < 0.0f)); }

/* The sum of a vector in memory. */
INLINE float NAMED(total)(const float *from) {
    float4 sum = *(const float4 *)from;
    UNROLL for (int l = 4; l < LANES; l += 4) sum += *(const float4 *)(from + l);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* acc[r, :] += Σₛ left[r, s] right[s, :] for `rows` rows and `vecs` vectors of columns: at most 12, all in registers. */
INLINE void NAMED(multiply)(vec acc[12][2], int rows, int vecs, int64_t depth, const float *left, int64_t by_row,
                            int64_t by_depth, const float *right, int64_t by_right) {
    for (int64_t s = 0; s < depth; s++, left += by_depth, right += by_right) {
        vec w[2];
        UNROLL for (int v = 0; v < vecs; v++) w[v] = NAMED(load)(right + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++) acc[r][v] += left[r * by_row] * w[v];
    }
}

#include "score.h"
#include "learn.h"
#include "train.h"

#undef bits
#undef vec
#undef UNROLL
#undef INLINE
#undef NAMED
#undef JOIN
#undef JOIN_
#undef TARGET
#undef LANES

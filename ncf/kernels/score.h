/* Scores of user-item pairs, a block of candidates of one user at a time. */

/* ReLU(x Wᵀ + b) of `pairs` rows and `vecs * LANES` outputs. Of the last layer only its product with the head's weights
   is kept, added to `sums`, [pairs, LANES]. */
INLINE void NAMED(tile)(int pairs, int vecs, const float *x, int64_t stride, int64_t inputs, const float *weight,
                        const float *bias, const float *head, float *out, int64_t out_stride, float *sums) {
    vec acc[12][2];
    UNROLL for (int p = 0; p < pairs; p++)
        UNROLL for (int v = 0; v < vecs; v++) acc[p][v] = NAMED(load)(bias + v * LANES);
    NAMED(multiply)(acc, pairs, vecs, inputs, x, stride, 1, weight, vecs * LANES);
    UNROLL for (int p = 0; p < pairs; p++)
        UNROLL for (int v = 0; v < vecs; v++) {
            vec y = NAMED(relu)(acc[p][v]);
            if (head)
                NAMED(store)(sums + p * LANES, NAMED(load)(sums + p * LANES) + y * NAMED(load)(head + v * LANES));
            else
                NAMED(store)(out + p * out_stride + v * LANES, y);
        }
}

/* One layer for a block of pairs: tiles of 6 × 2 vectors, and of 12 × 1 where one vector of outputs is left over. */
TARGET static void NAMED(layer)(int pairs, const float *x, int64_t stride, int64_t inputs, int64_t outputs,
                                const float *weight, const float *bias, const float *head, float *out, float *sums) {
    for (int64_t j = 0; j < outputs; weight += inputs * 2 * LANES, j += 2 * LANES) {
        const float *part = head ? head + j : 0;
        int p = 0;
#define TILE(rows, vecs)                                                                                     \
    for (; p + rows <= pairs; p += rows)                                                                     \
    NAMED(tile)                                                                                              \
    (rows, vecs, x + p * stride, stride, inputs, weight, bias + j, part, out + p * outputs + j, outputs,     \
     sums + p * LANES)
        if (j + 2 * LANES <= outputs) {
            TILE(6, 2);
        } else {
            TILE(12, 1);
            TILE(6, 1);
        }
#undef TILE
    }
}

/* At most PAIRS candidates of one user; `base` is what depends on neither. Filled up to a multiple of six rows. */
TARGET static void NAMED(block)(const Tables *t, const float *user, float base, const int64_t *items, int count,
                                float *scratch, float *scores) {
    const int64_t hidden = t->hidden, row = hidden + t->factors, layers = t->layers;
    const float *rows = t->items, *item_bias = t->item_bias, *head = layers ? 0 : t->head;
    const int pairs = (count + 5) / 6 * 6;
    float *x = scratch, *y = x + PAIRS * t->widest, *sums = y + PAIRS * t->widest;
    for (int p = 0; p < pairs; p++) {
        const int64_t item = items[p < count ? p : 0];
        const float *of_item = rows + (item < 0 ? 0 : item) * row;
        vec sum = {0};
        for (int64_t h = 0; h < hidden; h += LANES) {
            vec z = NAMED(relu)(NAMED(load)(user + h) + NAMED(load)(of_item + h));
            if (head)
                sum += z * NAMED(load)(head + h);
            else
                NAMED(store)(x + p * hidden + h, z);
        }
        for (int64_t f = hidden; f < row; f += LANES) sum += NAMED(load)(user + f) * NAMED(load)(of_item + f);
        NAMED(store)(sums + p * LANES, sum);
    }
    int64_t stride = hidden, inputs = t->inputs;
    for (int64_t l = 0; l < layers; l++) {
        const float *last = l + 1 == layers ? t->head : 0;
        NAMED(layer)(pairs, x, stride, inputs, t->outputs[l], t->weights[l], t->biases[l], last, y, sums);
        float *out = y;
        y = x, x = out, stride = inputs = t->outputs[l];
    }
    for (int p = 0; p < count; p++) {
        const float of_item = item_bias && items[p] >= 0 ? item_bias[items[p]] : 0.0f;
        scores[p] = items[p] < 0 ? -INFINITY : NAMED(total)(sums + p * LANES) + base + of_item;
    }
}

TARGET static void NAMED(score)(const Tables *t, const int64_t *users, int64_t num_users, const int64_t *candidates,
                                int64_t step, int64_t width, float *scratch, float *scores) {
    /* One list for all users: as many rows at a time as stay in the cache for all of them. */
    const int64_t row = t->hidden + t->factors, chunk = step ? width : cached_items(t);
    for (int64_t start = 0; start < width; start += chunk)
        for (int64_t u = 0; u < num_users; u++) {
            const float base = t->bias + (t->user_bias ? t->user_bias[users[u]] : 0.0f);
            const int64_t end = start + chunk < width ? start + chunk : width;
            for (int64_t c = start; c < end; c += PAIRS)
                NAMED(block)(t, t->users + users[u] * row, base, candidates + u * step + c,
                             end - c < PAIRS ? (int)(end - c) : PAIRS, scratch, scores + u * width + c);
        }
}

/* Training steps: lookups, towers, loss, gradients and Adam, a block of pairs at a time. */

/* out = init + Σₛ left[r, s] right[s, :] for `rows` rows and `vecs` vectors of columns. */
INLINE void NAMED(product_tile)(int rows, int vecs, int64_t depth, const float *left, int64_t by_row, int64_t by_depth,
                                const float *right, const float *init, int64_t by_init, float *out, int64_t columns) {
    vec acc[12][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = NAMED(load)(init + r * by_init + v * LANES);
    NAMED(multiply)(acc, rows, vecs, depth, left, by_row, by_depth, right, columns);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) NAMED(store)(out + r * columns + v * LANES, acc[r][v]);
}

/* The same for matrices: left [rows, depth] by its strides, right [depth, columns], out [rows, columns]; columns is
   a multiple of LANES, and `by_init` 0 repeats one row. */
TARGET static void NAMED(product)(int64_t rows, int64_t columns, int64_t depth, const float *left, int64_t by_row,
                                  int64_t by_depth, const float *right, const float *init, int64_t by_init,
                                  float *out) {
    for (int64_t j = 0; j < columns; j += 2 * LANES) {
        int64_t r = 0;
#define TILE(tall, vecs)                                                                                    \
    for (; r + tall <= rows; r += tall)                                                                     \
    NAMED(product_tile)                                                                                     \
    (tall, vecs, depth, left + r * by_row, by_row, by_depth, right + j, init + r * by_init + j, by_init,    \
     out + r * columns + j, columns)
        if (j + 2 * LANES <= columns) {
            TILE(6, 2);
            TILE(4, 2);
            TILE(2, 2);
            TILE(1, 2);
        } else {
            TILE(12, 1);
            TILE(4, 1);
            TILE(1, 1);
        }
#undef TILE
    }
}

INLINE int64_t NAMED(whole)(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

/* Copy a row, and fill it up with zeros to whole vectors. */
INLINE void NAMED(fetch)(float *to, const float *from, int64_t width) {
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) NAMED(store)(to + c, NAMED(load)(from + c));
    if (c == width) return;
    NAMED(store)(to + c, (vec){0});
    for (; c < width; c++) to[c] = from[c];
}

/* to += by * from */
INLINE void NAMED(add)(float *to, float by, const float *from, int64_t width) {
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) NAMED(store)(to + c, NAMED(load)(to + c) + by * NAMED(load)(from + c));
    for (; c < width; c++) to[c] += by * from[c];
}

INLINE float NAMED(dot)(const float *a, const float *b, int64_t width) {
    vec sum = {0};
    for (int64_t c = 0; c < width; c += LANES) sum += NAMED(load)(a + c) * NAMED(load)(b + c);
    float lanes[LANES];
    NAMED(store)(lanes, sum);
    return NAMED(total)(lanes);
}

/* What a step works in; every row is padded to whole vectors. G positives of a block, M pairs. */
typedef struct {
    float *user, *item, *user_back, *item_back;    /* MLP rows and their gradients: [G, D], [M, D] */
    float *of_user, *of_user_back;                 /* the user's half of the first layer, and its gradient: [G, H] */
    float *z[MAX_LAYERS], *back, *back_before;     /* hidden layers [M, H_l]; gradients of two of them, [M, widest] */
    float *user_gmf, *item_gmf, *scaled, *pulled;  /* GMF rows [G, F], [M, F]; one user's row times the head, [F] */
    float *logits, *slopes;                        /* [M], and the loss's derivative by them */
    float *weight[MAX_LAYERS], *turned[MAX_LAYERS]; /* [out, in] and [in, out]; the first layer: [2 out, D], [2 D, out] */
    float *bias[MAX_LAYERS], *turned_back[MAX_LAYERS], *bias_back[MAX_LAYERS]; /* and their gradients */
    float *head_gmf, *mlp_head, *head_gmf_back, *mlp_head_back;
    float *zeros;
} NAMED(Work);

/* The weights as the step reads them. Of the first layer, the user's half comes before the item's. */
TARGET static void NAMED(pack)(const Model *m, const NAMED(Work) * w) {
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = m->outputs[l], whole_out = NAMED(whole)(out), halves = l ? 1 : 2;
        const int64_t in = l ? m->outputs[l - 1] : m->dim, whole_in = NAMED(whole)(in);
        const float *from = m->weights[l].value;
        for (int64_t half = 0; half < halves; half++)
            for (int64_t o = 0; o < out; o++)
                for (int64_t i = 0; i < in; i++) {
                    const float value = from[(o * halves + half) * in + i];
                    w->weight[l][(half * out + o) * whole_in + i] = value;
                    w->turned[l][(half * whole_in + i) * whole_out + o] = value;
                }
        NAMED(fetch)(w->bias[l], m->biases[l].value, out);
    }
    if (m->factors && m->head.value)
        NAMED(fetch)(w->head_gmf, m->head.value, m->factors);
    else
        for (int64_t f = 0; f < m->factors; f++) w->head_gmf[f] = 1.0f;
    if (m->layers) NAMED(fetch)(w->mlp_head, m->head.value + m->factors, m->outputs[m->layers - 1]);
}

/* The gradients of what pack copied, in the parameters' own layout. */
TARGET static void NAMED(unpack)(const Model *m, const NAMED(Work) * w) {
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = m->outputs[l], whole_out = NAMED(whole)(out), halves = l ? 1 : 2;
        const int64_t in = l ? m->outputs[l - 1] : m->dim, whole_in = NAMED(whole)(in);
        for (int64_t half = 0; half < halves; half++)
            for (int64_t o = 0; o < out; o++)
                for (int64_t i = 0; i < in; i++)
                    m->weights[l].gradient[(o * halves + half) * in + i] =
                        w->turned_back[l][(half * whole_in + i) * whole_out + o];
        memset(w->turned_back[l], 0, sizeof(float) * halves * whole_in * whole_out);
        NAMED(add)(m->biases[l].gradient, 1.0f, w->bias_back[l], out);
        memset(w->bias_back[l], 0, sizeof(float) * whole_out);
    }
    if (m->head.value) {
        NAMED(add)(m->head.gradient, 1.0f, w->head_gmf_back, m->factors);
        memset(w->head_gmf_back, 0, sizeof(float) * NAMED(whole)(m->factors));
        if (m->layers) {
            const int64_t width = m->outputs[m->layers - 1];
            NAMED(add)(m->head.gradient + m->factors, 1.0f, w->mlp_head_back, width);
            memset(w->mlp_head_back, 0, sizeof(float) * NAMED(whole)(width));
        }
    }
}

TARGET static void NAMED(mlp_forward)(const Model *m, const NAMED(Work) * w, const int64_t *users,
                                      const int64_t *items, int64_t groups, int64_t each) {
    const int64_t dim = m->dim, row = NAMED(whole)(dim), pairs = groups * each;
    for (int64_t g = 0; g < groups; g++) NAMED(fetch)(w->user + g * row, m->user_mlp.value + users[g] * dim, dim);
    for (int64_t p = 0; p < pairs; p++) NAMED(fetch)(w->item + p * row, m->item_mlp.value + items[p] * dim, dim);
    int64_t width = NAMED(whole)(m->outputs[0]);
    NAMED(product)(groups, width, dim, w->user, row, 1, w->turned[0], w->bias[0], 0, w->of_user);
    NAMED(product)(pairs, width, dim, w->item, row, 1, w->turned[0] + row * width, w->zeros, 0, w->z[0]);
    for (int64_t p = 0; p < pairs; p++)
        for (int64_t h = 0; h < width; h += LANES) {
            float *z = w->z[0] + p * width + h;
            NAMED(store)(z, NAMED(relu)(NAMED(load)(z) + NAMED(load)(w->of_user + p / each * width + h)));
        }
    for (int l = 1; l < m->layers; l++) {
        const int64_t before = width;
        width = NAMED(whole)(m->outputs[l]);
        NAMED(product)(pairs, width, m->outputs[l - 1], w->z[l - 1], before, 1, w->turned[l], w->bias[l], 0, w->z[l]);
        for (int64_t c = 0; c < pairs * width; c += LANES)
            NAMED(store)(w->z[l] + c, NAMED(relu)(NAMED(load)(w->z[l] + c)));
    }
    for (int64_t p = 0; p < pairs; p++)
        w->logits[p] += NAMED(dot)(w->z[m->layers - 1] + p * width, w->mlp_head, width);
}

TARGET static void NAMED(mlp_backward)(const Model *m, const NAMED(Work) * w, const int64_t *users,
                                       const int64_t *items, int64_t groups, int64_t each) {
    const int64_t dim = m->dim, row = NAMED(whole)(dim), pairs = groups * each;
    int64_t width = NAMED(whole)(m->outputs[m->layers - 1]);
    float *back = w->back, *before = w->back_before;
    for (int64_t p = 0; p < pairs; p++) {
        const float slope = w->slopes[p], *z = w->z[m->layers - 1] + p * width;
        NAMED(add)(w->mlp_head_back, slope, z, width);
        for (int64_t h = 0; h < width; h += LANES)
            NAMED(store)(back + p * width + h,
                         (vec)((bits)(slope * NAMED(load)(w->mlp_head + h)) & (bits)(NAMED(load)(z + h) > 0.0f)));
    }
    for (int l = m->layers - 1; l > 0; l--) {
        const int64_t in = m->outputs[l - 1], whole_in = NAMED(whole)(in);
        const float *z = w->z[l - 1];
        NAMED(product)(in, width, pairs, z, 1, whole_in, back, w->turned_back[l], width, w->turned_back[l]);
        for (int64_t p = 0; p < pairs; p++) NAMED(add)(w->bias_back[l], 1.0f, back + p * width, width);
        NAMED(product)(pairs, whole_in, m->outputs[l], back, width, 1, w->weight[l], w->zeros, 0, before);
        for (int64_t c = 0; c < pairs * whole_in; c += LANES)
            NAMED(store)(before + c, (vec)((bits)NAMED(load)(before + c) & (bits)(NAMED(load)(z + c) > 0.0f)));
        float *swap = back;
        back = before, before = swap, width = whole_in;
    }
    memset(w->of_user_back, 0, sizeof(float) * groups * width);
    for (int64_t p = 0; p < pairs; p++)
        NAMED(add)(w->of_user_back + p / each * width, 1.0f, back + p * width, width);
    for (int64_t g = 0; g < groups; g++) NAMED(add)(w->bias_back[0], 1.0f, w->of_user_back + g * width, width);
    float *of_users = w->turned_back[0], *of_items = of_users + row * width;
    NAMED(product)(dim, width, groups, w->user, 1, row, w->of_user_back, of_users, width, of_users);
    NAMED(product)(dim, width, pairs, w->item, 1, row, back, of_items, width, of_items);
    const int64_t out = m->outputs[0];
    NAMED(product)(groups, row, out, w->of_user_back, width, 1, w->weight[0], w->zeros, 0, w->user_back);
    NAMED(product)(pairs, row, out, back, width, 1, w->weight[0] + out * row, w->zeros, 0, w->item_back);
    for (int64_t g = 0; g < groups; g++)
        NAMED(add)(m->user_mlp.gradient + users[g] * dim, 1.0f, w->user_back + g * row, dim);
    for (int64_t p = 0; p < pairs; p++)
        NAMED(add)(m->item_mlp.gradient + items[p] * dim, 1.0f, w->item_back + p * row, dim);
}

/* The user's row times the head's weights, in `scaled`. */
INLINE void NAMED(scale)(const NAMED(Work) * w, const float *user, int64_t width) {
    for (int64_t f = 0; f < width; f += LANES)
        NAMED(store)(w->scaled + f, NAMED(load)(user + f) * NAMED(load)(w->head_gmf + f));
}

TARGET static void NAMED(gmf_forward)(const Model *m, const NAMED(Work) * w, const int64_t *users,
                                      const int64_t *items, int64_t groups, int64_t each) {
    const int64_t width = NAMED(whole)(m->factors), row = m->gmf_row;
    for (int64_t g = 0; g < groups; g++) {
        const float *of_user = m->user_gmf.value + users[g] * row;
        NAMED(fetch)(w->user_gmf + g * width, of_user, m->factors);
        NAMED(scale)(w, w->user_gmf + g * width, width);
        for (int64_t p = g * each; p < (g + 1) * each; p++) {
            const float *of_item = m->item_gmf.value + items[p] * row;
            NAMED(fetch)(w->item_gmf + p * width, of_item, m->factors);
            w->logits[p] += NAMED(dot)(w->scaled, w->item_gmf + p * width, width);
            if (m->biased) w->logits[p] += of_user[m->factors] + of_item[m->factors];
        }
    }
}

TARGET static void NAMED(gmf_backward)(const Model *m, const NAMED(Work) * w, const int64_t *users,
                                       const int64_t *items, int64_t groups, int64_t each) {
    const int64_t width = NAMED(whole)(m->factors), row = m->gmf_row;
    for (int64_t g = 0; g < groups; g++) {
        float *of_user = m->user_gmf.gradient + users[g] * row, total = 0.0f;
        const float *user = w->user_gmf + g * width;
        NAMED(scale)(w, user, width);
        memset(w->pulled, 0, sizeof(float) * width);
        for (int64_t p = g * each; p < (g + 1) * each; p++) {
            float *of_item = m->item_gmf.gradient + items[p] * row;
            NAMED(add)(w->pulled, w->slopes[p], w->item_gmf + p * width, width);
            NAMED(add)(of_item, w->slopes[p], w->scaled, m->factors);
            if (m->biased) of_item[m->factors] += w->slopes[p];
            total += w->slopes[p];
        }
        for (int64_t f = 0; f < width; f += LANES) {
            const vec pulled = NAMED(load)(w->pulled + f);
            NAMED(store)(w->head_gmf_back + f, NAMED(load)(w->head_gmf_back + f) + pulled * NAMED(load)(user + f));
            NAMED(store)(w->pulled + f, pulled * NAMED(load)(w->head_gmf + f));
        }
        NAMED(add)(of_user, 1.0f, w->pulled, m->factors);
        if (m->biased) of_user[m->factors] += total;
    }
}

/* Gradients of one batch into the parameters'; returns its loss. */
TARGET static double NAMED(batch)(const Model *m, const NAMED(Work) * w, const int64_t *users, const int64_t *items,
                                  int64_t positives, int64_t each, int64_t groups) {
    double loss = 0.0;
    NAMED(pack)(m, w);
    for (int64_t start = 0; start < positives; start += groups, users += groups, items += groups * each) {
        const int64_t some = positives - start < groups ? positives - start : groups, pairs = some * each;
        for (int64_t p = 0; p < pairs; p++) w->logits[p] = *m->bias.value;
        if (m->factors) NAMED(gmf_forward)(m, w, users, items, some, each);
        if (m->layers) NAMED(mlp_forward)(m, w, users, items, some, each);
        loss += m->pairwise ? pairwise_loss(w->logits, w->slopes, some, each, positives)
                            : pointwise_loss(w->logits, w->slopes, some, each, positives);
        for (int64_t p = 0; p < pairs; p++) *m->bias.gradient += w->slopes[p];
        if (m->factors) NAMED(gmf_backward)(m, w, users, items, some, each);
        if (m->layers) NAMED(mlp_backward)(m, w, users, items, some, each);
    }
    NAMED(unpack)(m, w);
    return loss;
}

/* One update by Adam (Kingma & Ba, ICLR 2015); leaves a gradient of zero behind. */
TARGET static void NAMED(adam)(const Parameter *of, const Adam *a, float rate, float correction) {
    float *restrict value = of->value, *restrict mean = of->mean, *restrict square = of->square;
    float *restrict gradient = of->gradient;
    for (int64_t i = 0; i < of->size; i++) {
        const float g = gradient[i] + a->weight_decay * value[i];
        mean[i] += (g - mean[i]) * (1.0f - a->beta1);
        square[i] = square[i] * a->beta2 + g * g * (1.0f - a->beta2);
        value[i] -= rate * mean[i] / (sqrtf(square[i]) * correction + a->epsilon);
        gradient[i] = 0.0f;
    }
}

TARGET static int NAMED(train)(const Model *m, const Adam *a, const int64_t *users, const int64_t *items,
                               int64_t batches, int64_t positives, int64_t each, const float *rates,
                               const float *corrections, float *losses) {
    const int64_t groups = each < TRAINED ? TRAINED / each : 1, pairs = groups * each, dim = NAMED(whole)(m->dim);
    const int64_t factors = NAMED(whole)(m->factors);
    int64_t widest = dim > factors ? dim : factors;
    for (int l = 0; l < m->layers; l++)
        if (NAMED(whole)(m->outputs[l]) > widest) widest = NAMED(whole)(m->outputs[l]);
    NAMED(Work) w = {0};
    float *memory = 0;
    for (int counting = 1; counting >= 0; counting--) { /* first how much, then where */
        size_t used = 0;
#define TAKE(name, size) (name = counting ? 0 : memory + used, used += (size))
        TAKE(w.zeros, widest), TAKE(w.logits, pairs), TAKE(w.slopes, pairs);
        TAKE(w.user_gmf, groups * factors), TAKE(w.item_gmf, pairs * factors);
        TAKE(w.scaled, factors), TAKE(w.pulled, factors), TAKE(w.head_gmf, factors), TAKE(w.head_gmf_back, factors);
        if (m->layers) {
            TAKE(w.user, groups * dim), TAKE(w.user_back, groups * dim);
            TAKE(w.item, pairs * dim), TAKE(w.item_back, pairs * dim);
            TAKE(w.of_user, groups * widest), TAKE(w.of_user_back, groups * widest);
            TAKE(w.back, pairs * widest), TAKE(w.back_before, pairs * widest);
            TAKE(w.mlp_head, widest), TAKE(w.mlp_head_back, widest);
        }
        for (int l = 0; l < m->layers; l++) {
            const int64_t out = NAMED(whole)(m->outputs[l]), in = l ? NAMED(whole)(m->outputs[l - 1]) : 2 * dim;
            TAKE(w.z[l], pairs * out), TAKE(w.bias[l], out), TAKE(w.bias_back[l], out);
            TAKE(w.weight[l], in * out), TAKE(w.turned[l], in * out), TAKE(w.turned_back[l], in * out);
        }
#undef TAKE
        if (counting && !(memory = calloc(used, sizeof(float)))) return -2;
    }
    for (int64_t k = 0; k < batches; k++, users += positives, items += positives * each) {
        losses[k] = (float)NAMED(batch)(m, &w, users, items, positives, each, groups);
        for (int p = 0; p < m->parameters; p++) NAMED(adam)(m->all[p], a, rates[k], corrections[k]);
    }
    free(memory);
    return -1;
}

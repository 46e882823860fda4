/* Training steps. The pairs of a batch are cut into slots, whose number depends on the batch alone; each adds up its
   own gradients of what all share, and writes those of rows beside each other. Then each row of the batch is updated by
   the sum of its gradients in the order of the batch. */

/* The gradient of a rectifier's input, by that of its output and the output. */
INLINE vec NAMED(relu_back)(vec gradient, vec output) { return (vec)((bits)gradient & (bits)(output > 0.0f)); }

/* out = init + Σₛ left[r, s] right[s, :] for `rows` rows and `vecs` vectors of columns; then rectified, or taken back
   through the rectifier whose output was `of`. */
INLINE void NAMED(product_tile)(int rows, int vecs, int64_t depth, const float *left, int64_t by_row, int64_t by_depth,
                                const float *right, const float *init, int64_t by_init, float *out, int64_t columns,
                                int finish, const float *of) {
    vec acc[12][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = NAMED(load)(init + r * by_init + v * LANES);
    NAMED(multiply)(acc, rows, vecs, depth, left, by_row, by_depth, right, columns);
    if (finish == RELU) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = NAMED(relu)(acc[r][v]);
    } else if (finish == RELU_BACK) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vecs; v++)
                acc[r][v] = NAMED(relu_back)(acc[r][v], NAMED(load)(of + r * columns + v * LANES));
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) NAMED(store)(out + r * columns + v * LANES, acc[r][v]);
}

/* The same for matrices: left [rows, depth] by its strides, right [depth, columns], out [rows, columns]; columns is
   a multiple of LANES, and `by_init` 0 repeats one row. `init` may be `out`. */
TARGET static void NAMED(product)(int64_t rows, int64_t columns, int64_t depth, const float *left, int64_t by_row,
                                  int64_t by_depth, const float *right, const float *init, int64_t by_init,
                                  float *out, int finish, const float *of) {
    for (int64_t j = 0; j < columns; j += 2 * LANES) {
        int64_t r = 0;
#define TILE(tall, vecs)                                                                                    \
    for (; r + tall <= rows; r += tall)                                                                     \
    NAMED(product_tile)                                                                                     \
    (tall, vecs, depth, left + r * by_row, by_row, by_depth, right + j, init + r * by_init + j, by_init,    \
     out + r * columns + j, columns, finish, of + (finish == RELU_BACK ? r * columns + j : 0))
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

INLINE int64_t NAMED(round_up)(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

/* Copy a row, and fill it up with zeros to whole vectors. */
INLINE void NAMED(copy_padded)(float *to, const float *from, int64_t width) {
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

/* Have a row of so many floats brought to the second-level cache, which can wait for more lines than the first can. */
INLINE void NAMED(prefetch)(const float *row, int64_t count) {
    for (int64_t c = 0; c < count; c += 16) __builtin_prefetch(row + c, 0, 2);
}

/* to += the sum of some rows. */
TARGET static void NAMED(add_rows)(float *to, int64_t rows, int64_t width, const float *from) {
    for (int64_t h = 0; h < width; h += LANES) {
        vec even = NAMED(load)(to + h), odd = {0};
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2)
            even += NAMED(load)(from + r * width + h), odd += NAMED(load)(from + (r + 1) * width + h);
        if (r < rows) even += NAMED(load)(from + r * width + h);
        NAMED(store)(to + h, even + odd);
    }
}

/* What a step works in; every row is padded to whole vectors. P positives of a batch, G of a block, M pairs of it; S
   shared negatives, W their number in whole vectors. */
typedef struct {
    /* Of all threads. */
    float *weight[MAX_LAYERS], *transposed[MAX_LAYERS]; /* [out, in], [in, out]; the first layer: [2 out, D], [2 D, out] */
    float *bias[MAX_LAYERS], *gmf_head, *mlp_head, *zeros;
    float *scaled, *slopes; /* user's rows times the head [P, F]; by the logits [P, samples_per_positive] */
    float *user_gmf_back, *user_back, *item_back; /* gradients: [P, F + bias], [P, D], [P, samples_per_positive, D] */
    float *negatives, *negatives_transposed, *constants; /* shared: [S, F], [F, W], and what is added to logits [W] */
    float *negatives_back, *constants_back;              /* and their gradients by slot: [slots, S, F], [slots, W] */
    float *sums;                                         /* [slots, gradients of what all share] */
    double *losses;                                      /* [slots] */
    /* Of one thread. */
    float *user, *item, *of_user, *of_user_back; /* MLP rows [G, D], [M, D]; user's half of the first layer [G, H] */
    float *z[MAX_LAYERS], *back, *back_before;   /* hidden layers [M, H_l]; gradients of two of them, [M, widest] */
    float *user_gmf, *item_gmf, *scaled_back;    /* GMF rows [G, F], [M, F]; the gradient of `scaled`, [G, F] */
    float *logits, *e, *row_back;                /* [M]; for the loss; one row's gradient */
    float *matrix, *matrix_slopes;               /* logits of shared negatives, and their slopes: [G, W] */
    /* Of one slot: gradients. */
    float *transposed_back[MAX_LAYERS], *bias_back[MAX_LAYERS], *gmf_head_back, *mlp_head_back, *constant_back;
} NAMED(Work);

typedef struct {
    const Model *m;
    const Chunk *c;
    NAMED(Work) work;
    Rows users, items;
    int32_t *user_rows, *item_rows; /* dense Adam: which row of the batch a row is, or -1 */
    float *own;                     /* what each thread takes from here on */
    int64_t own_size, groups, slots, sums, threads;
} NAMED(Job);

#define TAKE(name, size) (name = base ? base + used : 0, used += (size))

/* The gradients of what all share, from `base` on; returns how many numbers they are. */
TARGET static int64_t NAMED(take_sums)(const Model *m, NAMED(Work) * w, float *base) {
    int64_t used = 0, in = 2 * NAMED(round_up)(m->dim);
    TAKE(w->constant_back, LANES);
    TAKE(w->gmf_head_back, NAMED(round_up)(m->factors));
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = NAMED(round_up)(m->outputs[l]);
        TAKE(w->transposed_back[l], in * out), TAKE(w->bias_back[l], out);
        in = out;
    }
    if (m->layers) TAKE(w->mlp_head_back, in);
    return used;
}

/* What all threads use. */
TARGET static int64_t NAMED(take_common)(const NAMED(Job) * j, NAMED(Work) * w, float *base) {
    const Model *m = j->m;
    const int64_t dim = NAMED(round_up)(m->dim), factors = NAMED(round_up)(m->factors), places = j->c->positives;
    const int64_t pairs = places * j->c->samples_per_positive, shared = j->c->num_shared;
    const int64_t width = NAMED(round_up)(shared);
    int64_t used = 0, in = 2 * dim, widest = dim > factors ? dim : factors;
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = NAMED(round_up)(m->outputs[l]);
        TAKE(w->weight[l], in * out), TAKE(w->transposed[l], in * out), TAKE(w->bias[l], out);
        in = out, widest = out > widest ? out : widest;
    }
    TAKE(w->zeros, widest), TAKE(w->gmf_head, factors), TAKE(w->slopes, pairs);
    if (m->layers) TAKE(w->mlp_head, in), TAKE(w->user_back, places * dim), TAKE(w->item_back, pairs * dim);
    TAKE(w->scaled, places * factors), TAKE(w->user_gmf_back, places * NAMED(round_up)(m->user_gmf.row));
    if (shared) {
        TAKE(w->negatives, shared * factors), TAKE(w->negatives_transposed, factors * width), TAKE(w->constants, width);
        TAKE(w->negatives_back, j->slots * shared * factors), TAKE(w->constants_back, j->slots * width);
    }
    TAKE(w->sums, j->slots * j->sums);
    return used;
}

/* What one thread uses. */
TARGET static int64_t NAMED(take_own)(const NAMED(Job) * j, NAMED(Work) * w, float *base) {
    const Model *m = j->m;
    const int64_t dim = NAMED(round_up)(m->dim), factors = NAMED(round_up)(m->factors), groups = j->groups;
    const int64_t pairs = groups * j->c->samples_per_positive, width = NAMED(round_up)(j->c->num_shared);
    int64_t used = 0, widest = NAMED(round_up)(m->user_gmf.row > m->dim ? m->user_gmf.row : m->dim);
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = NAMED(round_up)(m->outputs[l]);
        TAKE(w->z[l], pairs * out);
        widest = out > widest ? out : widest;
    }
    TAKE(w->logits, NAMED(round_up)(pairs)), TAKE(w->row_back, widest);
    TAKE(w->e, NAMED(round_up)(pairs > 1 + j->c->num_shared ? pairs : 1 + j->c->num_shared));
    TAKE(w->user_gmf, groups * factors), TAKE(w->item_gmf, pairs * factors), TAKE(w->scaled_back, groups * factors);
    TAKE(w->matrix, groups * width), TAKE(w->matrix_slopes, groups * width);
    if (m->layers) {
        TAKE(w->user, groups * dim), TAKE(w->item, pairs * dim);
        TAKE(w->of_user, groups * widest), TAKE(w->of_user_back, groups * widest);
        TAKE(w->back, pairs * widest), TAKE(w->back_before, pairs * widest);
    }
    return (used + 15) / 16 * 16; /* no two threads in one line of the cache */
}
#undef TAKE

/* The weights as the step reads them. Of the first layer, the user's half comes before the item's. */
TARGET static void NAMED(pack)(const Model *m, const NAMED(Work) * w) {
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = m->outputs[l], padded_out = NAMED(round_up)(out), halves = l ? 1 : 2;
        const int64_t in = l ? m->outputs[l - 1] : m->dim, padded_in = NAMED(round_up)(in);
        const float *from = m->weights[l].value;
        for (int64_t half = 0; half < halves; half++)
            for (int64_t o = 0; o < out; o++)
                for (int64_t i = 0; i < in; i++) {
                    const float value = from[(o * halves + half) * in + i];
                    w->weight[l][(half * out + o) * padded_in + i] = value;
                    w->transposed[l][(half * padded_in + i) * padded_out + o] = value;
                }
        NAMED(copy_padded)(w->bias[l], m->biases[l].value, out);
    }
    if (m->gmf_head.value)
        NAMED(copy_padded)(w->gmf_head, m->gmf_head.value, m->factors);
    else
        for (int64_t f = 0; f < m->factors; f++) w->gmf_head[f] = 1.0f;
    if (m->layers) NAMED(copy_padded)(w->mlp_head, m->mlp_head.value, m->outputs[m->layers - 1]);
}

INLINE void NAMED(update_all)(const Model *m, const StepScales *scales, const Parameter *p, const float *gradient) {
    NAMED(update)(m, scales, p, 0, p->value, p->mean, p->square, gradient, p->size);
}

/* Add the slots' gradients up, update what all share, and pack it anew. */
TARGET static void NAMED(update_dense)(const NAMED(Job) * j, NAMED(Work) * w, const StepScales *scales) {
    const Model *m = j->m;
    for (int64_t s = 1; s < j->slots; s++) NAMED(add)(w->sums, 1.0f, w->sums + s * j->sums, j->sums);
    NAMED(take_sums)(m, w, w->sums);
    for (int l = 0; l < m->layers; l++) {
        const int64_t out = m->outputs[l], padded_out = NAMED(round_up)(out), halves = l ? 1 : 2;
        const int64_t in = l ? m->outputs[l - 1] : m->dim, padded_in = NAMED(round_up)(in);
        float *gradient = w->weight[l]; /* is packed anew below */
        for (int64_t half = 0; half < halves; half++)
            for (int64_t o = 0; o < out; o++)
                for (int64_t i = 0; i < in; i++)
                    gradient[(o * halves + half) * in + i] =
                        w->transposed_back[l][(half * padded_in + i) * padded_out + o];
        NAMED(update_all)(m, scales, &m->weights[l], gradient);
        memset(gradient, 0, sizeof(float) * halves * padded_in * padded_out);
        NAMED(update_all)(m, scales, &m->biases[l], w->bias_back[l]);
    }
    if (m->gmf_head.value) NAMED(update_all)(m, scales, &m->gmf_head, w->gmf_head_back);
    if (m->layers) NAMED(update_all)(m, scales, &m->mlp_head, w->mlp_head_back);
    NAMED(update_all)(m, scales, &m->bias, w->constant_back);
    NAMED(pack)(m, w);
}

TARGET static void NAMED(mlp_forward)(const Model *m, const NAMED(Work) * w, const int64_t *users, const int64_t *items,
                                      int64_t groups, int64_t per_positive) {
    const int64_t dim = m->dim, row = NAMED(round_up)(dim), pairs = groups * per_positive;
    for (int64_t g = 0; g < groups; g++) NAMED(copy_padded)(w->user + g * row, m->user_mlp.value + users[g] * dim, dim);
    for (int64_t p = 0; p < pairs; p++) NAMED(copy_padded)(w->item + p * row, m->item_mlp.value + items[p] * dim, dim);
    int64_t width = NAMED(round_up)(m->outputs[0]);
    float *z = w->z[0];
    NAMED(product)(groups, width, dim, w->user, row, 1, w->transposed[0], w->bias[0], 0, w->of_user, AS_IT_IS, 0);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t h = 0; h < width; h += LANES) {
            const vec half = NAMED(load)(w->of_user + g * width + h);
            for (int64_t p = g * per_positive; p < (g + 1) * per_positive; p++) NAMED(store)(z + p * width + h, half);
        }
    NAMED(product)(pairs, width, dim, w->item, row, 1, w->transposed[0] + row * width, z, width, z, RELU, 0);
    for (int l = 1; l < m->layers; l++) {
        const int64_t before = width;
        width = NAMED(round_up)(m->outputs[l]);
        NAMED(product)(pairs, width, m->outputs[l - 1], w->z[l - 1], before, 1, w->transposed[l], w->bias[l], 0,
                       w->z[l], RELU, 0);
    }
    for (int64_t p = 0; p < pairs; p++)
        w->logits[p] += NAMED(dot)(w->z[m->layers - 1] + p * width, w->mlp_head, width);
}

TARGET static void NAMED(mlp_backward)(const Model *m, const NAMED(Work) * w, const float *slopes, float *user_back,
                                       float *item_back, int64_t groups, int64_t per_positive) {
    const int64_t dim = m->dim, row = NAMED(round_up)(dim), pairs = groups * per_positive;
    const int last = (int)m->layers - 1;
    int64_t width = NAMED(round_up)(m->outputs[last]);
    float *back = w->back, *before = w->back_before;
    for (int64_t h = 0; h < width; h += LANES) {
        const vec head = NAMED(load)(w->mlp_head + h);
        vec of_head = NAMED(load)(w->mlp_head_back + h);
        for (int64_t p = 0; p < pairs; p++) {
            const vec z = NAMED(load)(w->z[last] + p * width + h);
            of_head += slopes[p] * z;
            NAMED(store)(back + p * width + h, NAMED(relu_back)(slopes[p] * head, z));
        }
        NAMED(store)(w->mlp_head_back + h, of_head);
    }
    for (int l = last; l > 0; l--) {
        const int64_t in = m->outputs[l - 1], padded_in = NAMED(round_up)(in);
        const float *z = w->z[l - 1];
        NAMED(product)(in, width, pairs, z, 1, padded_in, back, w->transposed_back[l], width, w->transposed_back[l],
                       AS_IT_IS, 0);
        NAMED(add_rows)(w->bias_back[l], pairs, width, back);
        NAMED(product)(pairs, padded_in, m->outputs[l], back, width, 1, w->weight[l], w->zeros, 0, before, RELU_BACK,
                       z);
        float *swap = back;
        back = before, before = swap, width = padded_in;
    }
    for (int64_t g = 0; g < groups; g++)
        for (int64_t h = 0; h < width; h += LANES) {
            vec sum = {0};
            for (int64_t p = g * per_positive; p < (g + 1) * per_positive; p++)
                sum += NAMED(load)(back + p * width + h);
            NAMED(store)(w->of_user_back + g * width + h, sum);
        }
    NAMED(add_rows)(w->bias_back[0], groups, width, w->of_user_back);
    float *of_users = w->transposed_back[0], *of_items = of_users + row * width;
    NAMED(product)(dim, width, groups, w->user, 1, row, w->of_user_back, of_users, width, of_users, AS_IT_IS, 0);
    NAMED(product)(dim, width, pairs, w->item, 1, row, back, of_items, width, of_items, AS_IT_IS, 0);
    const int64_t out = m->outputs[0];
    NAMED(product)(groups, row, out, w->of_user_back, width, 1, w->weight[0], w->zeros, 0, user_back, AS_IT_IS, 0);
    NAMED(product)(pairs, row, out, back, width, 1, w->weight[0] + out * row, w->zeros, 0, item_back, AS_IT_IS, 0);
}

/* The bias behind the factors of a row, if there is one. */
INLINE float NAMED(bias_of)(const Model *m, const Parameter *table, int64_t row) {
    return m->biased ? table->value[row * table->row + m->factors] : 0.0f;
}

/* A row of the product, divided by its length for a cosine. */
INLINE void NAMED(load_gmf_row)(const Model *m, float *to, const Parameter *table, int64_t row) {
    NAMED(copy_padded)(to, table->value + row * table->row, m->factors);
    if (!m->cosine) return;
    const int64_t width = NAMED(round_up)(m->factors);
    const float by = 1.0f / fmaxf(sqrtf(NAMED(dot)(to, to, width)), MIN_LENGTH);
    for (int64_t f = 0; f < width; f += LANES) NAMED(store)(to + f, by * NAMED(load)(to + f));
}

/* The users' rows, also times the head's weights, in `scaled`. */
TARGET static void NAMED(load_users)(const Model *m, const NAMED(Work) * w, const int64_t *users, int64_t groups,
                                     float *scaled) {
    const int64_t width = NAMED(round_up)(m->factors);
    for (int64_t g = 0; g < groups; g++) {
        NAMED(load_gmf_row)(m, w->user_gmf + g * width, &m->user_gmf, users[g]);
        for (int64_t f = g * width; f < (g + 1) * width; f += LANES)
            NAMED(store)(scaled + f, NAMED(load)(w->user_gmf + f) * NAMED(load)(w->gmf_head + f - g * width));
    }
}

TARGET static void NAMED(gmf_forward)(const Model *m, const NAMED(Work) * w, const int64_t *users, const int64_t *items,
                                      int64_t groups, int64_t per_positive, float *scaled) {
    const int64_t width = NAMED(round_up)(m->factors);
    NAMED(load_users)(m, w, users, groups, scaled);
    for (int64_t g = 0; g < groups; g++) {
        const float of_user = NAMED(bias_of)(m, &m->user_gmf, users[g]);
        for (int64_t p = g * per_positive; p < (g + 1) * per_positive; p++) {
            NAMED(load_gmf_row)(m, w->item_gmf + p * width, &m->item_gmf, items[p]);
            w->logits[p] += NAMED(dot)(scaled + g * width, w->item_gmf + p * width, width);
            if (m->biased) w->logits[p] += of_user + NAMED(bias_of)(m, &m->item_gmf, items[p]);
        }
    }
}

/* Gradients of the users' rows and of the head from those of the product, `scaled_back`. */
TARGET static void NAMED(users_backward)(const Model *m, const NAMED(Work) * w, int64_t groups, float *user_back) {
    const int64_t width = NAMED(round_up)(m->factors), row = NAMED(round_up)(m->user_gmf.row);
    for (int64_t g = 0; g < groups; g++) {
        float *scaled_back = w->scaled_back + g * width;
        const float *user = w->user_gmf + g * width;
        for (int64_t f = 0; f < width; f += LANES) {
            const vec gradient = NAMED(load)(scaled_back + f);
            NAMED(store)(w->gmf_head_back + f, NAMED(load)(w->gmf_head_back + f) + gradient * NAMED(load)(user + f));
            NAMED(store)(scaled_back + f, gradient * NAMED(load)(w->gmf_head + f));
        }
        memcpy(user_back + g * row, scaled_back, sizeof(float) * m->factors);
    }
}

TARGET static void NAMED(gmf_backward)(const Model *m, const NAMED(Work) * w, const float *slopes, int64_t groups,
                                       int64_t per_positive, float *user_back) {
    const int64_t width = NAMED(round_up)(m->factors);
    for (int64_t g = 0; g < groups; g++) {
        float total = 0.0f;
        for (int64_t f = 0; f < width; f += LANES) {
            vec gradient = {0};
            for (int64_t p = g * per_positive; p < (g + 1) * per_positive; p++)
                gradient += slopes[p] * NAMED(load)(w->item_gmf + p * width + f);
            NAMED(store)(w->scaled_back + g * width + f, gradient);
        }
        for (int64_t p = g * per_positive; p < (g + 1) * per_positive; p++) total += slopes[p];
        if (m->biased) user_back[g * NAMED(round_up)(m->user_gmf.row) + m->factors] = total;
    }
    NAMED(users_backward)(m, w, groups, user_back);
}

/* What the softmax takes from the logit of a negative, in units of the logit. */
INLINE float NAMED(correction)(const Model *m, int64_t user, int64_t item) {
    float correction = m->item_correction ? m->item_correction[item] : 0.0f;
    if (m->user_correction) correction -= m->user_correction[user];
    return m->temperature * correction;
}

/* Positives from `start` on, each with its own negatives; returns their loss. */
TARGET static double NAMED(pairs)(const NAMED(Job) * j, const NAMED(Work) * w, const int64_t *users,
                                  const int64_t *items, int64_t start, int64_t groups) {
    const Model *m = j->m;
    const int64_t per_positive = j->c->samples_per_positive, dim = NAMED(round_up)(m->dim);
    float *slopes = w->slopes + start * per_positive, *scaled = w->scaled + start * NAMED(round_up)(m->factors);
    users += start, items += start * per_positive;
    for (int64_t p = 0; p < groups * per_positive; p++) w->logits[p] = *m->bias.value;
    if (m->factors) NAMED(gmf_forward)(m, w, users, items, groups, per_positive, scaled);
    if (m->layers) NAMED(mlp_forward)(m, w, users, items, groups, per_positive);
    if (m->loss == SOFTMAX)
        for (int64_t p = 0; p < groups * per_positive; p++)
            if (p % per_positive) w->logits[p] -= NAMED(correction)(m, users[p / per_positive], items[p]);
    const double loss = m->loss == BCE
                            ? NAMED(pointwise)(groups, per_positive, w->logits, slopes, w->e, j->c->positives)
                            : NAMED(loss)(m, groups, per_positive - 1, w->logits, per_positive, w->logits + 1,
                                          per_positive, slopes, slopes + 1, w->e, j->c->positives);
    float total = 0.0f;
    for (int64_t p = 0; p < groups * per_positive; p++) total += slopes[p];
    *w->constant_back += total;
    if (m->factors)
        NAMED(gmf_backward)(m, w, slopes, groups, per_positive,
                            w->user_gmf_back + start * NAMED(round_up)(m->user_gmf.row));
    if (m->layers)
        NAMED(mlp_backward)(m, w, slopes, w->user_back + start * dim, w->item_back + start * per_positive * dim, groups,
                            per_positive);
    return loss;
}

/* The rows of shared negatives; their gradients begin at zero. */
TARGET static void NAMED(load_shared)(const NAMED(Job) * j, const NAMED(Work) * w, const int64_t *shared, int64_t from,
                                      int64_t to) {
    const Model *m = j->m;
    const int64_t count = j->c->num_shared;
    const int64_t factors = NAMED(round_up)(m->factors), width = NAMED(round_up)(count);
    for (int64_t s = from; s < to; s++) {
        float *row = w->negatives + s * factors;
        NAMED(load_gmf_row)(m, row, &m->item_gmf, shared[s]);
        for (int64_t f = 0; f < m->factors; f++) w->negatives_transposed[f * width + s] = row[f];
        w->constants[s] = *m->bias.value + NAMED(bias_of)(m, &m->item_gmf, shared[s]);
        if (m->loss == SOFTMAX && m->item_correction)
            w->constants[s] -= m->temperature * m->item_correction[shared[s]];
    }
    for (int64_t slot = 0; slot < j->slots; slot++) {
        memset(w->negatives_back + (slot * count + from) * factors, 0, sizeof(float) * (to - from) * factors);
        memset(w->constants_back + slot * width + from, 0, sizeof(float) * (to - from));
    }
}

/* Positives from `start` on with the negatives that the batch shares; returns their loss. */
TARGET static double NAMED(shared_pairs)(const NAMED(Job) * j, const NAMED(Work) * w, const int64_t *users,
                                         const int64_t *items, const int64_t *seen, const int64_t *seen_end,
                                         int64_t slot, int64_t start, int64_t groups) {
    const Model *m = j->m;
    const int64_t count = j->c->num_shared, width = NAMED(round_up)(count), factors = NAMED(round_up)(m->factors);
    const int64_t row = NAMED(round_up)(m->user_gmf.row);
    float *slopes = w->slopes + start, *scaled = w->scaled + start * factors, *user_back = w->user_gmf_back + start * row;
    float *constants_back = w->constants_back + slot * width, *back = w->negatives_back + slot * count * factors;
    users += start, items += start;
    NAMED(load_users)(m, w, users, groups, scaled);
    NAMED(product)(groups, width, factors, scaled, factors, 1, w->negatives_transposed, w->constants, 0, w->matrix,
                   AS_IT_IS, 0);
    for (int64_t g = 0; g < groups; g++) {
        const float *item = w->item_gmf + g * factors;
        NAMED(load_gmf_row)(m, w->item_gmf + g * factors, &m->item_gmf, items[g]);
        const float of_user = NAMED(bias_of)(m, &m->user_gmf, users[g]);
        w->logits[g] = NAMED(dot)(scaled + g * factors, item, factors) + of_user + *m->bias.value +
                       NAMED(bias_of)(m, &m->item_gmf, items[g]);
        const float all = of_user + (m->loss == SOFTMAX && m->user_correction
                                         ? m->temperature * m->user_correction[users[g]] : 0.0f);
        if (all != 0.0f)
            for (int64_t s = 0; s < count; s++) w->matrix[g * width + s] += all;
    }
    while (seen < seen_end && *seen < start * count) seen++;
    for (; seen < seen_end && *seen < (start + groups) * count; seen++)
        w->matrix[(*seen / count - start) * width + *seen % count] = -INFINITY;
    const double loss = NAMED(loss)(m, groups, count, w->logits, 1, w->matrix, width, slopes, w->matrix_slopes, w->e,
                                    j->c->positives);
    NAMED(product)(groups, factors, count, w->matrix_slopes, width, 1, w->negatives, w->zeros, 0, w->scaled_back,
                   AS_IT_IS, 0);
    NAMED(product)(count, factors, groups, w->matrix_slopes, 1, width, scaled, back, factors, back,
                   AS_IT_IS, 0);
    for (int64_t g = 0; g < groups; g++) {
        NAMED(add)(w->scaled_back + g * factors, slopes[g], w->item_gmf + g * factors, factors);
        const float *of = w->matrix_slopes + g * width;
        float total = slopes[g];
        for (int64_t s = 0; s < count; s++) total += of[s];
        *w->constant_back += total;
        if (m->biased) {
            user_back[g * row + m->factors] = total;
            NAMED(add)(constants_back, 1.0f, of, count);
        }
    }
    NAMED(users_backward)(m, w, groups, user_back);
    return loss;
}

INLINE void NAMED(prefetch_values)(const Parameter *table, const int64_t *rows, int64_t count) {
    for (int64_t r = 0; r < count; r++) NAMED(prefetch)(table->value + rows[r] * table->row, table->row);
}

/* Have the rows of some positives and of their own negatives brought to the cache. */
TARGET static void NAMED(prefetch_pairs)(const Model *m, const int64_t *users, const int64_t *items, int64_t groups,
                                         int64_t per_positive) {
    if (m->factors) {
        NAMED(prefetch_values)(&m->user_gmf, users, groups);
        NAMED(prefetch_values)(&m->item_gmf, items, groups * per_positive);
    }
    if (m->layers) {
        NAMED(prefetch_values)(&m->user_mlp, users, groups);
        NAMED(prefetch_values)(&m->item_mlp, items, groups * per_positive);
    }
}

/* One slot of a batch: what it shares with the others is in its own sums. */
TARGET static void NAMED(slot)(const NAMED(Job) * j, NAMED(Work) * w, int64_t batch, int64_t slot) {
    const Chunk *c = j->c;
    const int64_t *users = c->users + batch * c->positives,
                  *items = c->items + batch * c->positives * c->samples_per_positive;
    const int64_t end = c->positives * (slot + 1) / j->slots;
    double loss = 0.0;
    NAMED(take_sums)(j->m, w, w->sums + slot * j->sums);
    memset(w->sums + slot * j->sums, 0, sizeof(float) * j->sums);
    for (int64_t start = c->positives * slot / j->slots; start < end; start += j->groups) {
        const int64_t some = end - start < j->groups ? end - start : j->groups, next = start + some;
        const int64_t then = end - next < j->groups ? end - next : j->groups; /* those of the next block */
        NAMED(prefetch_pairs)(j->m, users + next, items + next * c->samples_per_positive, then,
                              c->samples_per_positive);
        if (c->num_shared)
            loss += NAMED(shared_pairs)(j, w, users, items, c->seen + c->seen_offsets[batch],
                                        c->seen + c->seen_offsets[batch + 1], slot, start, some);
        else
            loss += NAMED(pairs)(j, w, users, items, start, some);
    }
    w->losses[slot] = loss;
}

/* Which places of a batch name the same user, or the same item. */
TARGET static void NAMED(group)(NAMED(Job) * j, int64_t batch, int of_items) {
    const Chunk *c = j->c;
    const int64_t count = c->positives * (of_items ? c->samples_per_positive : 1);
    Rows *rows = of_items ? &j->items : &j->users;
    int32_t *where = of_items ? j->item_rows : j->user_rows;
    rows_clear(rows);
    rows_add(rows, (of_items ? c->items : c->users) + batch * count, count, 0);
    if (of_items && c->num_shared)
        for (int64_t s = 0; s < j->slots; s++)
            rows_add(rows, c->shared + batch * c->num_shared, c->num_shared, (int32_t)(count + s * c->num_shared));
    if (where)
        for (int64_t r = 0; r < rows->rows; r++) where[rows->ids[r]] = (int32_t)r;
}

/* The gradient of one row of the product's table, in the order of the batch. */
TARGET static void NAMED(gmf_row_back)(const NAMED(Job) * j, const NAMED(Work) * w, const Parameter *table,
                                       const Rows *rows, int64_t r) {
    const Model *m = j->m;
    const int64_t factors = NAMED(round_up)(m->factors), row = NAMED(round_up)(table->row),
                  per_positive = j->c->samples_per_positive;
    const int64_t count = j->c->num_shared, own = j->c->positives * per_positive;
    float *to = w->row_back, bias = 0.0f;
    memset(to, 0, sizeof(float) * row);
    for (int64_t p = rows->first[r]; p >= 0; p = rows->next[p]) {
        if (rows == &j->users) {
            NAMED(add)(to, 1.0f, w->user_gmf_back + p * row, row);
        } else if (p < own) {
            const int64_t g = (int32_t)p / (int32_t)per_positive; /* divides faster than 64 bits */
            NAMED(add)(to, w->slopes[p], w->scaled + g * factors, m->factors);
            bias += w->slopes[p];
        } else {
            const int64_t slot = (p - own) / count, s = (p - own) % count;
            NAMED(add)(to, 1.0f, w->negatives_back + (p - own) * factors, m->factors);
            bias += w->constants_back[slot * NAMED(round_up)(count) + s];
        }
    }
    if (m->biased && rows == &j->items) to[m->factors] = bias;
    if (!m->cosine) return;
    const float *value = table->value + rows->ids[r] * table->row; /* of r / |r|, back to r */
    float square = 0.0f, along = 0.0f;
    for (int64_t f = 0; f < m->factors; f++) square += value[f] * value[f], along += value[f] * to[f];
    const float length = fmaxf(sqrtf(square), MIN_LENGTH), by = 1.0f / length;
    along = length > MIN_LENGTH ? along * by * by : 0.0f;
    for (int64_t f = 0; f < m->factors; f++) to[f] = by * (to[f] - along * value[f]);
}

/* The gradient of one row of the MLP's table. */
TARGET static const float *NAMED(mlp_row_back)(const NAMED(Job) * j, const NAMED(Work) * w, const Rows *rows,
                                               int64_t r) {
    const int64_t dim = NAMED(round_up)(j->m->dim);
    const float *from = rows == &j->users ? w->user_back : w->item_back;
    int64_t p = rows->first[r];
    if (rows->next[p] < 0) return from + p * dim;
    memset(w->row_back, 0, sizeof(float) * dim);
    for (; p >= 0; p = rows->next[p]) NAMED(add)(w->row_back, 1.0f, from + p * dim, dim);
    return w->row_back;
}

TARGET static void NAMED(update_row)(const Model *m, const StepScales *scales, const Parameter *table, int64_t row,
                                     const float *gradient, int64_t count) {
    const int64_t at = row * table->row, sum = m->rule == ROWWISE ? row : at;
    float *mean = table->mean ? table->mean + at : 0, *square = table->square ? table->square + sum : 0;
    NAMED(update)(m, scales, table, 1, table->value + at, mean, square, gradient, count);
}

/* Have a row with its moments brought to the cache. */
INLINE void NAMED(prefetch_row)(const Parameter *table, int64_t row, int rule) {
    const int64_t at = row * table->row;
    NAMED(prefetch)(table->value + at, table->row);
    if (table->mean) NAMED(prefetch)(table->mean + at, table->row);
    if (table->square && rule == ROWWISE)
        NAMED(prefetch)(table->square + row, 1);
    else if (table->square)
        NAMED(prefetch)(table->square + at, table->row);
}

/* Update the rows [from, to) of the batch's. */
TARGET static void NAMED(update_rows)(const NAMED(Job) * j, const NAMED(Work) * w, const StepScales *scales,
                                      const Rows *rows, int64_t from, int64_t to) {
    const Model *m = j->m;
    const Parameter *gmf = rows == &j->users ? &m->user_gmf : &m->item_gmf;
    const Parameter *mlp = rows == &j->users ? &m->user_mlp : &m->item_mlp;
    for (int64_t ahead = from, r = from; r < to; r++) {
        for (; ahead < to && ahead <= r + PREFETCHED_ROWS; ahead++) {
            if (m->factors) NAMED(prefetch_row)(gmf, rows->ids[ahead], m->rule);
            if (m->layers) NAMED(prefetch_row)(mlp, rows->ids[ahead], m->rule);
        }
        if (m->factors) {
            NAMED(gmf_row_back)(j, w, gmf, rows, r);
            NAMED(update_row)(m, scales, gmf, rows->ids[r], w->row_back, gmf->row);
        }
        if (m->layers) NAMED(update_row)(m, scales, mlp, rows->ids[r], NAMED(mlp_row_back)(j, w, rows, r), mlp->row);
    }
}

/* Dense Adam: update all rows [from, to) of a side's tables, those of the batch and the others. */
TARGET static void NAMED(update_table)(const NAMED(Job) * j, const NAMED(Work) * w, const StepScales *scales,
                                       const Rows *rows, int64_t from, int64_t to) {
    const Model *m = j->m;
    const Parameter *gmf = rows == &j->users ? &m->user_gmf : &m->item_gmf;
    const Parameter *mlp = rows == &j->users ? &m->user_mlp : &m->item_mlp;
    int32_t *where = rows == &j->users ? j->user_rows : j->item_rows;
    for (int64_t row = from; row < to; row++) {
        const int64_t r = where[row];
        where[row] = -1;
        if (m->factors) {
            if (r < 0)
                memset(w->row_back, 0, sizeof(float) * gmf->row);
            else
                NAMED(gmf_row_back)(j, w, gmf, rows, r);
            NAMED(update_row)(m, scales, gmf, row, w->row_back, gmf->row);
        }
        if (m->layers) {
            if (r < 0) memset(w->row_back, 0, sizeof(float) * mlp->row);
            NAMED(update_row)(m, scales, mlp, row, r < 0 ? w->row_back : NAMED(mlp_row_back)(j, w, rows, r), mlp->row);
        }
    }
}

/* Phases of a batch: shared negatives, if there are any; slots; updates. */
TARGET static int NAMED(stage)(const Chunk *c, int64_t phase, int64_t *batch) {
    const int64_t stages = c->num_shared ? 3 : 2;
    *batch = phase / stages;
    return (int)(phase % stages + 3 - stages);
}

INLINE int64_t NAMED(parts)(int64_t count) { return (count + ROWS_PER_TASK - 1) / ROWS_PER_TASK; }

/* Where the share of a thread begins among some tasks in the order of the batch. */
INLINE int64_t NAMED(begin)(const NAMED(Job) * j, int64_t tasks, int64_t share) { return tasks * share / j->threads; }

/* How many user rows, or item rows, are updated. */
INLINE int64_t NAMED(rows_to_update)(const NAMED(Job) * j, int of_items) {
    if (j->m->rule == ADAM) return of_items ? j->m->num_items : j->m->num_users;
    return of_items ? j->items.rows : j->users.rows;
}

/* The first share has a task more of the slots' phase, its users and items by row, and of the updates', what all share.
 */
TARGET static int64_t NAMED(tasks)(void *given, int64_t phase, int64_t share) {
    const NAMED(Job) *j = given;
    int64_t batch, tasks = 0;
    const int stage = NAMED(stage)(j->c, phase, &batch);
    if (stage == 0) return share ? 0 : NAMED(parts)(j->c->num_shared);
    if (stage == 1) return 2 * (share == 0) + NAMED(begin)(j, j->slots, share + 1) - NAMED(begin)(j, j->slots, share);
    for (int of_items = 0; of_items < 2; of_items++) {
        const int64_t parts = NAMED(parts)(NAMED(rows_to_update)(j, of_items));
        tasks += NAMED(begin)(j, parts, share + 1) - NAMED(begin)(j, parts, share);
    }
    return (share == 0) + tasks;
}

/* One task of a batch's updates: what all share, or some rows. Rows are in the order of the batch: a share's are mostly
   of its slots. */
TARGET static void NAMED(update_part)(NAMED(Job) * j, NAMED(Work) * w, int64_t batch, int64_t share, int64_t task) {
    const StepScales scales = {j->c->rate_factors[batch], j->c->adam_rate_factors[batch],
                               j->c->moment_corrections[batch]};
    if (share == 0 && task-- == 0) {
        double loss = 0.0;
        for (int64_t s = 0; s < j->slots; s++) loss += w->losses[s];
        j->c->losses[batch] = (float)loss;
        NAMED(update_dense)(j, w, &scales);
        return;
    }
    const int64_t user_parts = NAMED(parts)(NAMED(rows_to_update)(j, 0)), first = NAMED(begin)(j, user_parts, share);
    const int64_t of_users = NAMED(begin)(j, user_parts, share + 1) - first;
    const int of_items = task >= of_users;
    const int64_t count = NAMED(rows_to_update)(j, of_items);
    const int64_t part = of_items ? NAMED(begin)(j, NAMED(parts)(count), share) + task - of_users : first + task;
    const int64_t from = ROWS_PER_TASK * part, to = from + ROWS_PER_TASK < count ? from + ROWS_PER_TASK : count;
    const Rows *rows = of_items ? &j->items : &j->users;
    if (j->m->rule == ADAM)
        NAMED(update_table)(j, w, &scales, rows, from, to);
    else
        NAMED(update_rows)(j, w, &scales, rows, from, to);
}

TARGET static void NAMED(work)(void *given, int64_t number, int64_t phase, int64_t share, int64_t task) {
    NAMED(Job) *j = given;
    NAMED(Work) w = j->work;
    const Chunk *c = j->c;
    int64_t batch;
#ifdef __SSE__
    const unsigned int control = _mm_getcsr();
    _mm_setcsr(control | 0x8040); /* numbers below 1e-38 are zero: moments would linger there, and be slow */
#endif
    NAMED(take_own)(j, &w, j->own + number * j->own_size);
    switch (NAMED(stage)(c, phase, &batch)) {
        case 0:
            task *= ROWS_PER_TASK;
            NAMED(load_shared)(j, &w, c->shared + batch * c->num_shared, task,
                               task + ROWS_PER_TASK < c->num_shared ? task + ROWS_PER_TASK : c->num_shared);
            break;
        case 1:
            if (share == 0 && task < 2)
                NAMED(group)(j, batch, task == 0);
            else
                NAMED(slot)(j, &w, batch, NAMED(begin)(j, j->slots, share) + task - 2 * (share == 0));
            break;
        default:
            NAMED(update_part)(j, &w, batch, share, task);
    }
#ifdef __SSE__
    _mm_setcsr(control);
#endif
}

TARGET static int NAMED(train)(const Model *m, const Chunk *c, int threads) {
    const int64_t pairs = c->positives * (c->num_shared ? 4 : c->samples_per_positive), slots = pairs / PAIRS_PER_SLOT;
    NAMED(Job) j = {.m = m, .c = c};
    j.groups = c->num_shared                               ? POSITIVES_PER_BLOCK
               : c->samples_per_positive < PAIRS_PER_BLOCK ? PAIRS_PER_BLOCK / c->samples_per_positive
                                                           : 1;
    j.slots = slots < 1 ? 1 : slots > MAX_SLOTS ? MAX_SLOTS : slots;
    if (threads > j.slots) threads = (int)j.slots;
    if (threads < 1) threads = 1;
    j.threads = threads;
    j.sums = (NAMED(take_sums)(m, &j.work, 0) + 15) / 16 * 16;
    j.own_size = NAMED(take_own)(&j, &j.work, 0);
    const int64_t common = NAMED(take_common)(&j, &j.work, 0), dense = m->rule == ADAM;
    const int64_t places = c->positives, item_places = c->positives * c->samples_per_positive + j.slots * c->num_shared;
    const int64_t lists = rows_size(places) + rows_size(item_places) + dense * (m->num_users + m->num_items);
    float *memory = calloc(common + threads * j.own_size, sizeof(float));
    int64_t *indices = malloc(sizeof(int32_t) * lists + sizeof(double) * j.slots);
    int done = memory && indices;
    if (done) {
        NAMED(take_common)(&j, &j.work, memory);
        j.own = memory + common;
        j.work.losses = (double *)indices;
        int32_t *next = (int32_t *)(j.work.losses + j.slots);
        rows_place(&j.users, next, places), next += rows_size(places);
        rows_place(&j.items, next, item_places), next += rows_size(item_places);
        if (dense) {
            j.user_rows = next, j.item_rows = next + m->num_users;
            memset(next, 0xff, sizeof(int32_t) * (m->num_users + m->num_items));
        }
        NAMED(pack)(m, &j.work);
        done = crew_run(threads, c->batches * (c->num_shared ? 3 : 2), NAMED(tasks), NAMED(work), &j);
    }
    free(memory);
    free(indices);
    return done ? -1 : -2;
}

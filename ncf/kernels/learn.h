/* Losses with their slopes, and the rules that update parameters. */

/* eˣ, to 2 units in the last place; 0 below -87, and a NaN stays one. */
INLINE vec NAMED(exponential)(vec x) {
    const bits low = x < -87.0f, high = x > 88.0f;
    const vec inside = (vec)((bits)x & ~(low | high));
    const vec half = (vec)(((bits)inside & (int32_t)0x80000000) | 0x3f000000); /* ½ with the sign of x */
    const bits n = __builtin_convertvector(inside * 1.44269504f + half, bits);
    const vec rounded = __builtin_convertvector(n, vec);
    const vec r = (inside - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    p *= (vec)((n + 127) << 23);
    const vec infinite = {0};
    return (vec)(((bits)p & ~(low | high)) | ((bits)(infinite + INFINITY) & high));
}

TARGET static void NAMED(exponentials)(float *x, int64_t count) { /* [round_up(count)] */
    for (int64_t c = 0; c < count; c += LANES) NAMED(store)(x + c, NAMED(exponential)(NAMED(load)(x + c)));
}

/* Sums of log(1 + e): one logarithm for many factors, none above 2. */
typedef struct {
    double sum, product;
    int factors;
} NAMED(Logs);

INLINE void NAMED(log_of)(NAMED(Logs) * l, float e) {
    l->product *= 1.0 + e;
    if (++l->factors == 512) l->sum += log(l->product), l->product = 1.0, l->factors = 0;
}

/* The loss of some positives, each with `count` negatives, and its slopes by the logits; both are those of the mean
   over all `positives`. A group's positive is at positive[g * step], its negatives from negative[g * stride] on. `e`
   has room for round_up(1 + count) numbers. See ncf/training/losses.py. */
TARGET static double NAMED(loss)(const Model *m, int64_t groups, int64_t count, const float *positive, int64_t step,
                                 const float *negative, int64_t stride, float *positive_slope, float *negative_slope,
                                 float *e, int64_t positives) {
    NAMED(Logs) logs = {0.0, 1.0, 0};
    double loss = 0.0;
    float share = 1.0f / (float)positives;
    if (m->loss == BCE) share = 1.0f / (float)(positives * (1 + count));
    if (m->loss == BPR) share = 1.0f / (float)(positives * count);
    for (int64_t g = 0; g < groups; g++, positive += step, positive_slope += step) {
        const float x = *positive, *restrict y = negative + g * stride;
        float *restrict slope = negative_slope + g * stride;
        if (m->loss == BCE) { /* −log σ(x), −log σ(−y) */
            for (int64_t j = 0; j < count; j++) e[j] = -fabsf(y[j]);
            e[count] = -fabsf(x);
            NAMED(exponentials)(e, 1 + count);
            for (int64_t j = 0; j <= count; j++) NAMED(log_of)(&logs, e[j]);
            float over = x < 0.0f ? -x : 0.0f;
            for (int64_t j = 0; j < count; j++) over += y[j] > 0.0f ? y[j] : 0.0f;
            loss += over;
            for (int64_t j = 0; j < count; j++) slope[j] = share * (y[j] > 0.0f ? 1.0f : e[j]) / (1.0f + e[j]);
            *positive_slope = -share * (x < 0.0f ? 1.0f : e[count]) / (1.0f + e[count]);
        } else if (m->loss == BPR) { /* −log σ(x − y) */
            for (int64_t j = 0; j < count; j++) e[j] = -fabsf(y[j] - x);
            NAMED(exponentials)(e, count);
            for (int64_t j = 0; j < count; j++) NAMED(log_of)(&logs, e[j]);
            float over = 0.0f, total = 0.0f;
            for (int64_t j = 0; j < count; j++) over += y[j] > x ? y[j] - x : 0.0f;
            loss += over;
            for (int64_t j = 0; j < count; j++) {
                slope[j] = share * (y[j] > x ? 1.0f : e[j]) / (1.0f + e[j]);
                total += slope[j];
            }
            *positive_slope = -total;
        } else if (m->loss == SOFTMAX) { /* −log(eˣ / (eˣ + Σ eʸ)), of logits divided by the temperature */
            const float by = 1.0f / m->temperature;
            float top = x * by, sum = 0.0f;
            for (int64_t j = 0; j < count; j++) top = y[j] * by > top ? y[j] * by : top;
            for (int64_t j = 0; j < count; j++) e[j] = y[j] * by - top;
            e[count] = x * by - top;
            NAMED(exponentials)(e, 1 + count);
            for (int64_t j = 0; j <= count; j++) sum += e[j];
            loss += logf(sum) + top - x * by;
            for (int64_t j = 0; j < count; j++) slope[j] = share * by / sum * e[j];
            *positive_slope = share * by * (e[count] / sum - 1.0f);
        } else { /* (1 − x) + weight · mean of (y − margin)₊ */
            const float weight = m->weight / (float)count;
            float over = 0.0f; /* "not below" lets a NaN through */
            for (int64_t j = 0; j < count; j++) over += !(y[j] <= m->margin) ? y[j] - m->margin : 0.0f;
            for (int64_t j = 0; j < count; j++) slope[j] = y[j] > m->margin ? share * weight : 0.0f;
            loss += 1.0f - x + weight * over;
            *positive_slope = -share;
        }
    }
    return (loss + logs.sum + log(logs.product)) * share;
}

/* The same for binary cross-entropy where a group's negatives follow its positive: `per_positive` logits to a group, in
   memory for whole vectors, which this overwrites. */
TARGET static double NAMED(pointwise)(int64_t groups, int64_t per_positive, float *x, float *slopes, float *e,
                                      int64_t positives) {
    const int64_t pairs = groups * per_positive;
    const float share = 1.0f / (float)(positives * per_positive);
    NAMED(Logs) logs = {0.0, 1.0, 0};
    double over = 0.0;
    for (int64_t p = 0; p < pairs; p += per_positive) x[p] = -x[p]; /* log(1 + eˣ), and −x for a positive */
    for (int64_t p = 0; p < pairs; p++) over += x[p] > 0.0f ? x[p] : 0.0f;
    for (int64_t p = 0; p < pairs; p += LANES) {
        const vec value = NAMED(load)(x + p), small = NAMED(exponential)((vec)((bits)value | (int32_t)0x80000000));
        const vec one = (vec){0} + 1.0f;
        const bits above = value > 0.0f;
        NAMED(store)(e + p, small);
        NAMED(store)(x + p, share * (vec)(((bits)one & above) | ((bits)small & ~above)) / (1.0f + small));
    }
    for (int64_t p = 0; p < pairs; p++) NAMED(log_of)(&logs, e[p]);
    memcpy(slopes, x, sizeof(float) * pairs);
    for (int64_t p = 0; p < pairs; p += per_positive) slopes[p] = -slopes[p];
    return (over + logs.sum + log(logs.product)) * share;
}

/* Update `count` numbers of one parameter, or of one row of a table. `square` is AdamW's second moment, or Adagrad's
   sum of squares, of which a row has one by row-wise Adagrad. See ncf/training/optimizers.py. */
TARGET static void NAMED(update)(const Model *m, const StepScales *scales, const Parameter *p, int by_row,
                                 float *restrict value, float *restrict mean, float *restrict square,
                                 const float *restrict gradient, int64_t count) {
    const float rate = p->rate * scales->rate, pull = rate * p->decay, target = p->target, epsilon = m->epsilon;
    if (m->rule == SGD) {
        for (int64_t i = 0; i < count; i++) value[i] -= pull * (value[i] - target) + rate * gradient[i];
    } else if (m->rule == ROWWISE && by_row) {
        float sum = 0.0f;
        for (int64_t i = 0; i < count; i++) sum += gradient[i] * gradient[i];
        *square += sum / (float)count;
        const float step = rate / (sqrtf(*square) + epsilon);
        for (int64_t i = 0; i < count; i++) value[i] -= pull * (value[i] - target) + step * gradient[i];
    } else if (m->rule == ADAGRAD || m->rule == ROWWISE) {
        for (int64_t i = 0; i < count; i++) {
            square[i] += gradient[i] * gradient[i];
            value[i] -= pull * (value[i] - target) + rate * gradient[i] / (sqrtf(square[i]) + epsilon);
        }
    } else {
        const float beta1 = 1.0f - m->beta1, beta2 = m->beta2, step = p->rate * scales->adam_rate, by = scales->moment;
        const float l2 = m->rule == ADAM ? p->decay : 0.0f, decoupled = m->rule == ADAM ? 0.0f : pull;
        for (int64_t i = 0; i < count; i++) {
            const float g = gradient[i] + l2 * value[i];
            mean[i] += (g - mean[i]) * beta1;
            square[i] = square[i] * beta2 + g * g * (1.0f - beta2);
            value[i] -= decoupled * (value[i] - target) + step * mean[i] / (sqrtf(square[i]) * by + epsilon);
        }
    }
}

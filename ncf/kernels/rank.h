/* Ranks of held-out items: how many other candidates score at least as high. No table of scores is written. */

/* How many scores reach `own`, ties included; or -1 if one is not a number. */
static int64_t at_least(const float *scores, int64_t count, float own) {
    int num_at_least = 0, num_nan = 0;
    for (int64_t c = 0; c < count; c++) num_at_least += scores[c] >= own, num_nan += scores[c] != scores[c];
    return num_nan ? -1 : num_at_least;
}

/* negatives: user u's begin at u * step; a negative number is padding, and an item that comes again, or is the
   positive, is not ranked. ranks, counts: [num_users]. Returns 1; or 0 if an id is unknown, a score is not a number, or
   there is no memory: ncf_score of the same pairs tells which. */
int64_t ncf_rank(const Tables *t, int lanes, const int64_t *users, int64_t num_users, const int64_t *positives,
                 const int64_t *negatives, int64_t step, int64_t width, int64_t *ranks, int64_t *counts) {
    const Score score = score_of(lanes);
    char *listed = calloc(t->num_items + 1, 1); /* whether an item is already among this user's */
    int64_t *items = malloc((1 + width) * sizeof(*items));
    float *scores = malloc((1 + width) * sizeof(*scores)), *scratch = scratch_of(t, lanes);
    int done = listed && items && scores && scratch && unknown_user(t, users, num_users) == -1;
    for (int64_t u = 0; u < num_users && done; u++) {
        done = positives[u] >= 0 && positives[u] < t->num_items;
        if (!done) break;
        int64_t count = 1;
        items[0] = positives[u];
        listed[items[0]] = 1;
        for (int64_t c = 0; c < width; c++) {
            const int64_t item = negatives[u * step + c];
            if (item >= t->num_items) done = 0;
            if (item >= t->num_items || item < 0 || listed[item]) continue;
            listed[item] = 1;
            items[count++] = item;
        }
        for (int64_t c = 0; c < count; c++) listed[items[c]] = 0;
        if (!done) break;
        score(t, users + u, 1, items, 0, count, scratch, scores);
        const int64_t num_at_least = at_least(scores, count, scores[0]);
        if (num_at_least < 1) done = 0; /* the positive reaches its own score, if it is a number */
        ranks[u] = num_at_least - 1;
        counts[u] = count;
    }
    free(listed), free(items), free(scores), free(scratch);
    return done;
}

/* The first num_items items, less those that each user has seen: of user u seen[offsets[u]] to seen[offsets[u + 1] - 1],
   ascending, without the positive. As many items at a time as stay in the cache for all users. Returns as ncf_rank
   does; 0 as well if the seen items are not such a list. */
int64_t ncf_rank_catalogue(const Tables *t, int lanes, const int64_t *users, int64_t num_users,
                           const int64_t *positives, int64_t num_items, const int64_t *offsets, const int64_t *seen,
                           int64_t num_seen, int64_t *ranks) {
    const Score score = score_of(lanes);
    const int64_t chunk = cached_items(t);
    int64_t *items = malloc(chunk * sizeof(*items)), *next = malloc((num_users + 1) * sizeof(*next));
    float *own = malloc((chunk + num_users) * sizeof(*own)), *scores = own + num_users, *scratch = scratch_of(t, lanes);
    int done = items && next && own && scratch && unknown_user(t, users, num_users) == -1;
    for (int64_t u = 0; u < num_users && done; u++)
        done = positives[u] >= 0 && positives[u] < num_items && offsets[u] >= 0 && offsets[u + 1] <= num_seen;
    if (done) {
        score(t, users, num_users, positives, 1, 1, scratch, own);
        memcpy(next, offsets, num_users * sizeof(*next));
        memset(ranks, 0, num_users * sizeof(*ranks));
    }
    for (int64_t start = 0; start < num_items && done; start += chunk) {
        const int64_t end = start + chunk < num_items ? start + chunk : num_items;
        for (int64_t item = start; item < end; item++) items[item - start] = item;
        for (int64_t u = 0; u < num_users && done; u++) {
            score(t, users + u, 1, items, 0, end - start, scratch, scores);
            const int64_t num_at_least = at_least(scores, end - start, own[u]);
            int64_t left_out = positives[u] >= start && positives[u] < end;
            done = num_at_least >= 0 && own[u] == own[u];
            for (; next[u] < offsets[u + 1] && seen[next[u]] < end && done; next[u]++) {
                done = seen[next[u]] >= start;
                left_out += done && scores[seen[next[u]] - start] >= own[u];
            }
            ranks[u] += num_at_least - left_out;
        }
    }
    free(items), free(next), free(own), free(scratch);
    return done;
}

#define QUERIES 480 /* users for whom a panel of items is laid out once; a multiple of six */

/* The best items so far: a heap whose first is the worst. Of equal scores the item with the lower number is better. */
typedef struct {
    float *scores;
    int64_t *items, size, count;
} Best;

static int worse(const Best *b, int64_t i, int64_t j) {
    return b->scores[i] < b->scores[j] || (b->scores[i] == b->scores[j] && b->items[i] > b->items[j]);
}

static void exchange(Best *b, int64_t i, int64_t j) {
    const float score = b->scores[i];
    const int64_t item = b->items[i];
    b->scores[i] = b->scores[j], b->items[i] = b->items[j];
    b->scores[j] = score, b->items[j] = item;
}

static void sink(Best *b, int64_t size) {
    for (int64_t at = 0, child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(b, child + 1, child)) child++;
        if (!worse(b, child, at)) return;
        exchange(b, at, child);
    }
}

/* Items are offered in ascending order: one that ties with the worst is not better. */
static void offer(Best *b, float score, int64_t item) {
    if (b->count < b->size) {
        int64_t at = b->count++;
        b->scores[at] = score, b->items[at] = item;
        for (; at && worse(b, at, (at - 1) / 2); at = (at - 1) / 2) exchange(b, at, (at - 1) / 2);
    } else if (score > b->scores[0]) {
        b->scores[0] = score, b->items[0] = item;
        sink(b, b->size);
    }
}

/* Best first; past the end -inf and -1. */
static void finish(Best *b) {
    for (int64_t last = b->count - 1; last > 0; last--) {
        exchange(b, 0, last);
        sink(b, last);
    }
    for (int64_t i = b->count; i < b->size; i++) b->scores[i] = -INFINITY, b->items[i] = -1;
}

static int holds(const int64_t *items, int64_t count, int64_t item) {
    int64_t first = 0, end = count;
    while (first < end) {
        const int64_t middle = first + (end - first) / 2;
        if (items[middle] < item)
            first = middle + 1;
        else
            end = middle;
    }
    return first < count && items[first] == item;
}

typedef struct {
    const Tables *tables;
    Score score;
    float *scratch;
    const int64_t *user, *left_out;
    int64_t num_left_out;
    float base, error; /* a score that is not exact lacks `base`, and is wrong by at most `error` */
    int exact;
} Query;

/* A score below this cannot be among the best. */
static float least(const Query *q, const Best *b) {
    if (b->count < b->size) return -INFINITY;
    if (q->exact) return b->scores[0];
    return b->scores[0] - q->base - (q->error + 4.0f * FLT_EPSILON * fabsf(b->scores[0]));
}

/* Offer what may be among the best of `count` items. Returns whether every score that counts is a number. */
static int scan(const Query *q, Best *b, const int64_t *items, const float *scores, int64_t count) {
    float cut = least(q, b);
    for (int64_t start = 0; start < count; start += 16) {
        const int64_t end = start + 16 < count ? start + 16 : count;
        int some = 0; /* written so that a NaN is found, too */
        for (int64_t c = start; c < end; c++) some |= !(scores[c] < cut);
        for (int64_t c = start; c < end && some; c++) {
            if (scores[c] < cut || holds(q->left_out, q->num_left_out, items[c])) continue;
            float score = scores[c];
            if (!q->exact) q->score(q->tables, q->user, 1, items + c, 0, 1, q->scratch, &score);
            if (score != score) return 0;
            offer(b, score, items[c]);
            cut = least(q, b);
        }
    }
    return 1;
}

static float norm(const float *row, int64_t size) {
    float sums[4] = {0.0f};
    for (int64_t f = 0; f < size; f += 4) /* rows are padded to whole vectors */
        for (int l = 0; l < 4; l++) sums[l] += row[f + l] * row[f + l];
    return sqrtf(sums[0] + sums[1] + sums[2] + sums[3]);
}

/* Lay some items out as a panel for `products`; returns the largest norm of a row plus the largest bias. */
static float lay_out(const Tables *t, const int64_t *items, int64_t count, int64_t columns, int64_t block, float *panel,
                     float *biases) {
    const int64_t factors = t->factors;
    float largest = 0.0f, bias = 0.0f;
    for (int64_t c = 0; c < columns; c++) {
        const int64_t item = items[c < count ? c : 0];
        const float *row = t->items + item * factors, length = norm(row, factors);
        float *to = panel + c / block * block * factors + c % block;
        for (int64_t f = 0; f < factors; f++) to[f * block] = row[f];
        biases[c] = t->item_bias ? t->item_bias[item] : 0.0f;
        if (!(length <= largest)) largest = length; /* a NaN stays */
        if (!(fabsf(biases[c]) <= bias)) bias = fabsf(biases[c]);
        if (largest != largest || bias != bias) largest = bias = INFINITY;
    }
    return largest + bias;
}

/* The k items of `items` (ascending) with the highest scores, best first, without those that are left out: of user u
   left_out[offsets[u]] to left_out[offsets[u + 1] - 1], ascending; offsets may be absent. best_scores, best_items:
   [num_users, k]. No score leaves the cache. Of a product alone, six users at a time are multiplied with a panel of
   items, in another order of sums than ncf_score; what that error leaves open is then scored as ncf_score does.
   Returns as ncf_rank does. */
int64_t ncf_top_k(const Tables *t, int lanes, const int64_t *users, int64_t num_users, const int64_t *items,
                  int64_t num_items, const int64_t *offsets, const int64_t *left_out, int64_t num_left_out, int64_t k,
                  float *best_scores, int64_t *best_items) {
    const Score score = score_of(lanes);
    const int64_t factors = t->factors, block = 2 * lanes, chunk = (cached_items(t) + block - 1) / block * block;
    const int panels = !t->hidden && num_users >= 6;
    const int64_t rows = panels ? 6 : 1, group = panels ? (num_users < QUERIES ? (num_users + 5) / 6 * 6 : QUERIES) : 1;
    float *scratch = scratch_of(t, lanes), *scores = malloc(sizeof(float) * chunk * (rows + 1)), *biases = 0, *panel = 0;
    float *queries = 0;
    int64_t *counts = calloc(num_users + 1, sizeof(*counts));
    int done = scratch && scores && counts && unknown_user(t, users, num_users) == -1;
    if (panels && done) {
        biases = scores + 6 * chunk;
        panel = malloc(sizeof(float) * chunk * factors);
        queries = malloc(sizeof(float) * group * (factors + 1));
        done = panel && queries;
    }
    for (int64_t c = 0; c < num_items && done; c++) done = items[c] >= 0 && items[c] < t->num_items;
    for (int64_t u = 0; u < num_users && offsets && done; u++)
        done = offsets[u] >= 0 && offsets[u] <= offsets[u + 1] && offsets[u + 1] <= num_left_out;
    const int64_t step = panels ? QUERIES : num_users;
    for (int64_t first = 0; first < num_users && done; first += step) {
        const int64_t last = first + step < num_users ? first + step : num_users;
        float *norms = panels ? queries + group * factors : 0;
        for (int64_t u = 0; panels && u < group; u++) {
            const float *row = t->users + users[first + u < last ? first + u : first] * factors;
            memcpy(queries + u * factors, row, sizeof(float) * factors);
            norms[u] = norm(row, factors);
        }
        for (int64_t start = 0; start < num_items && done; start += chunk) {
            const int64_t count = start + chunk < num_items ? chunk : num_items - start;
            const int64_t columns = (count + block - 1) / block * block;
            const float length = panels ? lay_out(t, items + start, count, columns, block, panel, biases) : 0.0f;
            for (int64_t u = first; u < last && done; u++) {
                const int64_t from = offsets ? offsets[u] : 0, row = panels ? (u - first) % 6 : 0;
                Best best = {best_scores + u * k, best_items + u * k, k, counts[u]};
                Query q = {t, score, scratch, users + u, offsets ? left_out + from : 0,
                           offsets ? offsets[u + 1] - from : 0, 0.0f, 0.0f, !panels};
                if (panels) {
                    if (!row) products_of(lanes)(queries + (u - first) * factors, factors, panel, biases, columns, scores);
                    q.base = t->bias + (t->user_bias ? t->user_bias[users[u]] : 0.0f);
                    q.error = 4.0f * (factors + 8) * FLT_EPSILON *
                              (norms[u - first] * length + length + fabsf(q.base));
                } else {
                    score(t, users + u, 1, items + start, 0, count, scratch, scores);
                }
                done = scan(&q, &best, items + start, scores + row * columns, count);
                counts[u] = best.count;
            }
        }
    }
    for (int64_t u = 0; u < num_users && done; u++) {
        Best best = {best_scores + u * k, best_items + u * k, k, counts[u]};
        finish(&best);
    }
    free(scratch), free(scores), free(counts), free(panel), free(queries);
    return done;
}

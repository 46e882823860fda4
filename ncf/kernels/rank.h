/* Ranks of held-out items: how many other candidates score at least as high. No table of scores is written. */

/* How many scores reach `own`, ties included; or -1 if one is not a number. */
static int64_t at_least(const float *scores, int64_t count, float own) {
    int num_at_least = 0, num_nan = 0;
    for (int64_t c = 0; c < count; c++) num_at_least += scores[c] >= own, num_nan += scores[c] != scores[c];
    return num_nan ? -1 : num_at_least;
}

typedef struct {
    const Tables *t;
    int lanes;
    const int64_t *users, *positives, *negatives;
    int64_t step, width;
    int64_t *ranks, *counts;
} Ranked;

static int64_t rank_piece(const void *job, int64_t from, int64_t to) {
    const Ranked *r = job;
    const Tables *t = r->t;
    const Score score = score_of(r->lanes);
    char *listed = calloc(t->num_items + 1, 1); /* whether an item is already among this user's */
    int64_t *items = malloc((1 + r->width) * sizeof(*items));
    float *scores = malloc((1 + r->width) * sizeof(*scores)), *scratch = scratch_of(t, r->lanes);
    int done = listed && items && scores && scratch;
    for (int64_t u = from; u < to && done; u++) {
        done = r->positives[u] >= 0 && r->positives[u] < t->num_items;
        if (!done) break;
        int64_t count = 1;
        items[0] = r->positives[u];
        listed[items[0]] = 1;
        for (int64_t c = 0; c < r->width; c++) {
            const int64_t item = r->negatives[u * r->step + c];
            if (item >= t->num_items) done = 0;
            if (item >= t->num_items || item < 0 || listed[item]) continue;
            listed[item] = 1;
            items[count++] = item;
        }
        for (int64_t c = 0; c < count; c++) listed[items[c]] = 0;
        if (!done) break;
        score(t, r->users + u, 1, items, 0, count, scratch, scores);
        const int64_t num_at_least = at_least(scores, count, scores[0]);
        if (num_at_least < 1) done = 0; /* the positive reaches its own score, if it is a number */
        r->ranks[u] = num_at_least - 1;
        r->counts[u] = count;
    }
    free(listed), free(items), free(scores), free(scratch);
    return done ? FINE : 0;
}

/* negatives: user u's begin at u * step; a negative number is padding, and an item that comes again, or is the
   positive, is not ranked. ranks, counts: [num_users]. Returns 1; or 0 if an id is unknown, a score is not a number, or
   there is no memory: ncf_score of the same pairs tells which. */
int64_t ncf_rank(const Tables *t, int lanes, int64_t threads, const int64_t *users, int64_t num_users,
                 const int64_t *positives, const int64_t *negatives, int64_t step, int64_t width, int64_t *ranks,
                 int64_t *counts) {
    const Ranked r = {t, lanes, users, positives, negatives, step, width, ranks, counts};
    int64_t at_once = users_at_once(width, 0);
    if (at_once < t->num_items / (width + 1)) at_once = t->num_items / (width + 1); /* a piece clears a mark for each item */
    return unknown_user(t, users, num_users) == -1 && in_pieces(threads, num_users, at_once, rank_piece, &r) == FINE;
}

typedef struct {
    const Tables *t;
    int lanes;
    const int64_t *users, *places, *positives, *offsets, *seen;
    int64_t num_items;
    int64_t *ranks;
} CatalogueRanked;

static int64_t rank_catalogue_piece(const void *job, int64_t from, int64_t to) {
    const CatalogueRanked *r = job;
    const Tables *t = r->t;
    const Score score = score_of(r->lanes);
    const int64_t chunk = cached_items(t), num_users = to - from, num_items = r->num_items;
    const int64_t *users = r->users + from, *places = r->places + from, *offsets = r->offsets + from;
    const int64_t *positives = r->positives, *seen = r->seen;
    const int64_t num_own = places[num_users] - places[0];
    int64_t *items = malloc(chunk * sizeof(*items)), *next = malloc(num_users * sizeof(*next)), *ranks = r->ranks;
    float *scores = malloc((chunk + num_own) * sizeof(*scores)), *owns = scores + chunk, *scratch = scratch_of(t, r->lanes);
    int done = items && next && scores && scratch;
    for (int64_t u = 0; u < num_users && done; u++) {
        float *own = owns + (places[u] - places[0]);
        for (int64_t p = places[u]; p < places[u + 1] && done; p++) done = positives[p] >= 0 && positives[p] < num_items;
        if (!done) break;
        score(t, users + u, 1, positives + places[u], 0, places[u + 1] - places[u], scratch, own);
        for (int64_t p = places[u]; p < places[u + 1]; p++) ranks[p] = 0, done = done && *own == *own, own++;
        next[u] = offsets[u];
    }
    for (int64_t start = 0; start < num_items && done; start += chunk) {
        const int64_t end = start + chunk < num_items ? start + chunk : num_items;
        for (int64_t item = start; item < end; item++) items[item - start] = item;
        for (int64_t u = 0; u < num_users && done; u++) {
            const int64_t first = next[u];
            score(t, users + u, 1, items, 0, end - start, scratch, scores);
            while (next[u] < offsets[u + 1] && seen[next[u]] < end && done) done = seen[next[u]++] >= start;
            for (int64_t p = places[u]; p < places[u + 1] && done; p++) {
                const float own = owns[p - places[0]];
                const int64_t num_at_least = at_least(scores, end - start, own);
                int64_t left_out = positives[p] >= start && positives[p] < end;
                for (int64_t s = first; s < next[u]; s++) left_out += scores[seen[s] - start] >= own;
                ranks[p] += num_at_least - left_out;
                done = num_at_least >= 0;
            }
        }
    }
    free(items), free(next), free(scores), free(scratch);
    return done ? FINE : 0;
}

/* The first num_items items, less those that each user has seen: of user u seen[offsets[u]] to seen[offsets[u + 1] - 1],
   ascending, without the positives, which are positives[places[u]] to positives[places[u + 1] - 1]. As many items at a
   time as stay in the cache, for all users of a piece. Returns as ncf_rank does; 0 as well if the seen items or the places
   are not such lists. ranks: at the same places as the positives. */
int64_t ncf_rank_catalogue(const Tables *t, int lanes, int64_t threads, const int64_t *users, int64_t num_users,
                           const int64_t *places, const int64_t *positives, int64_t num_positives, int64_t num_items,
                           const int64_t *offsets, const int64_t *seen, int64_t num_seen, int64_t *ranks) {
    const CatalogueRanked r = {t, lanes, users, places, positives, offsets, seen, num_items, ranks};
    int done = unknown_user(t, users, num_users) == -1;
    for (int64_t u = 0; u < num_users && done; u++)
        done = offsets[u] >= 0 && offsets[u + 1] <= num_seen && places[u] >= 0 && places[u] <= places[u + 1] &&
               places[u + 1] <= num_positives;
    return done && in_pieces(threads, num_users, users_at_once(num_items, 1), rank_catalogue_piece, &r) == FINE;
}

#define QUERIES 120               /* users for whom a part of a panel is read; a multiple of TOGETHER */
#define PANEL_CACHED (128 * 1024) /* bytes of a panel that stay in the second-level cache */

/* The best items so far: a heap whose first is the worst. Of equal scores the item with the lower number is better.
   left_out to left_end: the items that are left out, ascending, less those that the scan has passed. */
typedef struct {
    float *scores;
    int64_t *items, size, count;
    const int64_t *left_out, *left_end;
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

/* Whether an item is left out; items come in ascending order. */
static int left_out_of(Best *b, int64_t item) {
    while (b->left_out < b->left_end && *b->left_out < item) b->left_out++;
    return b->left_out < b->left_end && *b->left_out == item;
}

/* Offer items with their scores, but for those that are left out. Returns whether every score that counts is a number. */
static int scan(Best *b, const int64_t *items, const float *scores, int64_t count) {
    float worst = b->count < b->size ? -INFINITY : b->scores[0];
    for (int64_t start = 0; start < count; start += 16) {
        const int64_t end = start + 16 < count ? start + 16 : count;
        int some = 0; /* written so that a NaN is found, too */
        for (int64_t c = start; c < end; c++) some |= !(scores[c] < worst);
        for (int64_t c = start; c < end && some; c++) {
            if (scores[c] < worst || left_out_of(b, items[c])) continue;
            if (scores[c] != scores[c]) return 0;
            offer(b, scores[c], items[c]);
            worst = b->count < b->size ? -INFINITY : b->scores[0];
        }
    }
    return 1;
}

/* The same for those items of a user that are marked, whose scores are made here. */
static int scan_marked(const Tables *t, Score score, const int64_t *user, Best *b, const int64_t *items,
                       const uint16_t *marks, int64_t count, float *scratch) {
    int64_t some[PAIRS], found = 0;
    float scores[PAIRS];
    int done = 1;
    for (int64_t part = 0; part < count && done; part += COLUMNS) {
        uint64_t any;
        memcpy(&any, marks + part / BLOCK, sizeof any);
        for (int64_t start = part; any && start < part + COLUMNS; start += BLOCK)
            for (unsigned mark = marks[start / BLOCK]; mark && done; mark &= mark - 1) {
                const int64_t c = start + __builtin_ctz(mark);
                if (c >= count) break;
                some[found++] = items[c];
                if (found < PAIRS) continue;
                score(t, user, 1, some, 0, found, scratch, scores);
                done = scan(b, some, scores, found);
                found = 0;
            }
    }
    if (found) score(t, user, 1, some, 0, found, scratch, scores);
    return done && scan(b, some, scores, found);
}

/* Bytes of a user, and what its products are compared with. */
static Asked ask(const Tables *t, const Bytes *b, float longest, int64_t user, int8_t *whole) {
    float rest, length;
    const float scale = in_steps(t->users + user * b->size, b->size, 127, whole, &rest, &length);
    Asked asked = {scale, length + rest, rest, 0.0f, 0};
    for (int64_t f = 0; f < b->size; f++) asked.offset -= (STEPS + 1) * whole[f];
    if (!(asked.norm * longest < 1e37f)) asked.norm = INFINITY; /* a sum may overflow on the way */
    return asked;
}

/* What a bound of the product and the item's bias must reach. */
static float cut(const Tables *t, const Best *b, int64_t user) {
    if (b->count < b->size) return -INFINITY;
    const float base = t->bias + (t->user_bias ? t->user_bias[user] : 0.0f), worst = b->scores[0];
    return worst - base - (rounding(t->factors) * fabsf(base) + 4.0f * FLT_EPSILON * fabsf(worst));
}

typedef struct {
    const Tables *t;
    int lanes;
    const int64_t *users, *items, *offsets, *left_out;
    int64_t num_items, k;
    const uint8_t *panel;
    const float *numbers;
    int64_t columns;
    float *best_scores;
    int64_t *best_items;
} Selected;

static int64_t top_k_piece(const void *job, int64_t from, int64_t to) {
    const Selected *s = job;
    const Tables *t = s->t;
    const Score score = score_of(s->lanes);
    const Sift sift = sift_of(s->lanes);
    const float *numbers = s->numbers;
    const int64_t *users = s->users + from, *items = s->items;
    const int64_t num_users = to - from, num_items = s->num_items, k = s->k, columns = s->columns, factors = t->factors;
    const int64_t tile = s->panel ? TOGETHER : 1;
    const int64_t fits = s->panel ? PANEL_CACHED / factors / COLUMNS * COLUMNS + COLUMNS : cached_items(t);
    const int64_t short_part = s->panel ? (k + COLUMNS - 1) / COLUMNS * COLUMNS : fits; /* of which all are scored */
    const int64_t longest_part = short_part > fits ? short_part : fits;
    Bytes bytes = {0};
    if (s->panel)
        bytes = (Bytes){s->panel, numbers, numbers + columns, numbers + 2 * columns, numbers + 3 * columns, factors};
    float *scratch = scratch_of(t, s->lanes), *scores = malloc(sizeof(*scores) * longest_part);
    uint16_t *marks = malloc(sizeof(*marks) * TOGETHER * longest_part / BLOCK);
    int8_t *whole = malloc(s->panel ? num_users * factors : 1);
    Asked *asked = malloc(sizeof(*asked) * num_users);
    Best *best = malloc(sizeof(*best) * num_users);
    int done = scratch && scores && marks && whole && asked && best;
    for (int64_t u = 0; u < num_users && done; u++) {
        best[u] = (Best){s->best_scores + (from + u) * k, s->best_items + (from + u) * k, k, 0, s->left_out, s->left_out};
        if (s->offsets) best[u].left_out += s->offsets[from + u], best[u].left_end += s->offsets[from + u + 1];
        if (s->panel) asked[u] = ask(t, &bytes, numbers[4 * columns], users[u], whole + u * factors);
    }
    for (int64_t start = 0, size = short_part; start < num_items && done; start += size) {
        if (start) size = start < fits ? start : fits; /* so that a cut is made anew while it rises most */
        const int64_t end = start + size < columns ? start + size : columns;
        const int64_t count = start + size < num_items ? size : num_items - start;
        for (int64_t u = 0; u < num_users && done; u += tile) {
            const int rows = (int)(num_users - u < tile ? num_users - u : tile);
            for (int r = 0; r < rows && s->panel; r++) {
                asked[u + r].cut = cut(t, best + u + r, users[u + r]);
                __builtin_prefetch(best[u + r].left_out);
            }
            if (s->panel) sift(&bytes, rows, whole + u * factors, asked + u, start, end, marks);
            for (int r = 0; r < rows && done && s->panel; r++)
                done = scan_marked(t, score, users + u + r, best + u + r, items + start,
                                   marks + r * (end - start) / BLOCK, count, scratch);
            if (s->panel) continue;
            score(t, users + u, 1, items + start, 0, count, scratch, scores);
            done = scan(best + u, items + start, scores, count);
        }
    }
    for (int64_t u = 0; u < num_users && done; u++) finish(best + u);
    free(scratch), free(scores), free(marks), free(whole), free(asked), free(best);
    return done ? FINE : 0;
}

/* The k items of `items` (ascending) with the highest scores, best first, without those that are left out: of user u
   left_out[offsets[u]] to left_out[offsets[u + 1] - 1], ascending; offsets may be absent. best_scores, best_items:
   [num_users, k]. No score leaves the cache. Of a product alone, `panel` and `numbers` may be what ncf_bytes made of the
   items: then only those are scored that it leaves open. Returns as ncf_rank does. */
int64_t ncf_top_k(const Tables *t, int lanes, int64_t threads, const int64_t *users, int64_t num_users,
                  const int64_t *items, int64_t num_items, const int64_t *offsets, const int64_t *left_out,
                  int64_t num_left_out, int64_t k, const uint8_t *panel, const float *numbers, int64_t columns,
                  float *best_scores, int64_t *best_items) {
    const Selected s = {t, lanes, users, items, offsets, left_out, num_items, k, panel, numbers, columns, best_scores,
                        best_items};
    int done = unknown_user(t, users, num_users) == -1 && ascend(t, items, num_items);
    for (int64_t u = 0; u < num_users && offsets && done; u++)
        done = offsets[u] >= 0 && offsets[u] <= offsets[u + 1] && offsets[u + 1] <= num_left_out;
    int64_t at_once = users_at_once(num_items, 1);
    if (panel && at_once < QUERIES) at_once = num_users / (4 * threads) < QUERIES ? num_users / (4 * threads) : QUERIES;
    at_once = (at_once / TOGETHER + 1) * TOGETHER;
    return done && in_pieces(threads, num_users, at_once, top_k_piece, &s) == FINE;
}

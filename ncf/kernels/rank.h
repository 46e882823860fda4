/* Ranks of held-out items: how many other candidates score at least as high. No table of scores is written. */

/* How many scores reach `own`, ties included; or -1 if one is not a number. */
static int64_t at_least(const float *scores, int64_t count, float own) {
    int reach = 0, odd = 0;
    for (int64_t c = 0; c < count; c++) reach += scores[c] >= own, odd += scores[c] != scores[c];
    return odd ? -1 : reach;
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
        int64_t count = 0;
        for (int64_t c = 0; c <= width; c++) {
            const int64_t item = c ? negatives[u * step + c - 1] : positives[u];
            if (item >= t->num_items || (item < 0 && !c)) done = 0;
            if (item >= t->num_items || item < 0 || listed[item]) continue;
            listed[item] = 1;
            items[count++] = item;
        }
        for (int64_t c = 0; c < count; c++) listed[items[c]] = 0;
        if (!done) break;
        score(t, users + u, 1, items, 0, count, scratch, scores);
        const int64_t reach = at_least(scores, count, scores[0]);
        if (reach < 1) done = 0; /* the positive reaches its own score, if it is a number */
        ranks[u] = reach - 1;
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
            const int64_t reach = at_least(scores, end - start, own[u]);
            int64_t left_out = positives[u] >= start && positives[u] < end;
            done = reach >= 0 && own[u] == own[u];
            for (; next[u] < offsets[u + 1] && seen[next[u]] < end && done; next[u]++) {
                done = seen[next[u]] >= start;
                left_out += done && scores[seen[next[u]] - start] >= own[u];
            }
            ranks[u] += reach - left_out;
        }
    }
    free(items), free(next), free(own), free(scratch);
    return done;
}

/* Ranks of held-out items: how many other candidates score at least as high. No table of scores is written. */

/* Scores not below `own`, ties included; or -1 if one is not a number. */
static int64_t at_least(const float *scores, int64_t count, float own) {
    int above = 0, odd = 0;
    for (int64_t c = 0; c < count; c++) above += scores[c] >= own, odd += scores[c] != scores[c];
    return odd ? -1 : above;
}

/* negatives: user u's begin at u * step; a negative number is padding, and an item that comes again, or is the
   positive, is not ranked. ranks, counts: [num_users]. Returns as ncf_score does, its items being each user's positive
   and then the negatives; or -3 if a score is not a number. */
int64_t ncf_rank(const Tables *t, int lanes, const int64_t *users, int64_t num_users, const int64_t *positives,
                 const int64_t *negatives, int64_t step, int64_t width, int64_t *ranks, int64_t *counts) {
    const Score score = score_of(lanes);
    char *listed = calloc(t->num_items + 1, 1); /* whether an item is already among this user's */
    int64_t *items = malloc((1 + width) * sizeof(*items)), answer = unknown_user(t, users, num_users);
    float *scores = malloc((1 + width) * sizeof(*scores)), *scratch = scratch_of(t, lanes);
    if (!listed || !items || !scores || !scratch) answer = -2;
    for (int64_t u = 0; u < num_users && answer == -1; u++) {
        int64_t count = 0;
        for (int64_t c = 0; c <= width; c++) {
            const int64_t item = c ? negatives[u * step + c - 1] : positives[u];
            if (item >= t->num_items || (item < 0 && !c)) {
                answer = num_users + u * (1 + width) + c;
                break;
            }
            if (item < 0 || listed[item]) continue;
            listed[item] = 1;
            items[count++] = item;
        }
        if (answer != -1) break;
        for (int64_t c = 0; c < count; c++) listed[items[c]] = 0;
        score(t, users + u, 1, items, 0, count, scratch, scores);
        const int64_t above = at_least(scores, count, scores[0]);
        if (above < 1) answer = -3; /* the positive reaches its own score, if it is a number */
        ranks[u] = above - 1;
        counts[u] = count;
    }
    free(listed), free(items), free(scores), free(scratch);
    return answer;
}

/* The first num_items items, less those that each user has seen: of user u seen[offsets[u]] to seen[offsets[u + 1] - 1],
   ascending, without the positive. As many items at a time as stay in the cache for all users. Returns as ncf_rank
   does, a user's one item that can be unknown being the positive; and -3 if the seen items are not such a list. */
int64_t ncf_rank_catalogue(const Tables *t, int lanes, const int64_t *users, int64_t num_users,
                           const int64_t *positives, int64_t num_items, const int64_t *offsets, const int64_t *seen,
                           int64_t num_seen, int64_t *ranks) {
    const Score score = score_of(lanes);
    const int64_t chunk = cached_items(t);
    int64_t answer = unknown_user(t, users, num_users);
    for (int64_t u = 0; u < num_users && answer == -1; u++) {
        if (positives[u] < 0 || positives[u] >= num_items) answer = num_users + u;
        if (offsets[u] < 0 || offsets[u + 1] > num_seen) answer = -3;
    }
    int64_t *items = malloc(chunk * sizeof(*items)), *next = malloc((num_users + 1) * sizeof(*next));
    float *own = malloc((chunk + num_users) * sizeof(*own)), *scores = own + num_users, *scratch = scratch_of(t, lanes);
    if (!items || !next || !own || !scratch) answer = -2;
    if (answer == -1) {
        score(t, users, num_users, positives, 1, 1, scratch, own);
        memcpy(next, offsets, num_users * sizeof(*next));
        memset(ranks, 0, num_users * sizeof(*ranks));
    }
    for (int64_t start = 0; start < num_items && answer == -1; start += chunk) {
        const int64_t count = start + chunk < num_items ? chunk : num_items - start;
        for (int64_t c = 0; c < count; c++) items[c] = start + c;
        for (int64_t u = 0; u < num_users; u++) {
            score(t, users + u, 1, items, 0, count, scratch, scores);
            const int64_t above = at_least(scores, count, own[u]);
            int64_t left_out = positives[u] >= start && positives[u] < start + count;
            for (; next[u] < offsets[u + 1] && seen[next[u]] < start + count; next[u]++)
                if (seen[next[u]] < start)
                    answer = -3;
                else
                    left_out += scores[seen[next[u]] - start] >= own[u];
            ranks[u] += above - left_out;
            if (above < 0 || own[u] != own[u]) answer = -3;
        }
    }
    free(items), free(next), free(own), free(scratch);
    return answer;
}

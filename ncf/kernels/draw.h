/* Samples of an epoch: items that users have not interacted with, by rank, the order of the batches, and which of the
   items that a batch shares are known. */

/* How many of a user's ascending items, each less its place, are at most `rank`. */
static int64_t skipped_up_to(const int64_t *items, int64_t count, int64_t rank) {
    int64_t first = 0;
    while (count > 1) {
        const int64_t half = count / 2, last = first + half - 1;
        first += half & -(int64_t)(items[last] - last <= rank); /* no branch */
        count -= half;
    }
    return first + (count == 1 && items[first] - first <= rank);
}

/* For each of `count` users, `num` items: that of rank ⌊uniform · size⌋ among those outside the user's set, or -1 where
   there is none. seen: the items of all users, of user u from offsets[u] on; see UnseenItems in ncf/data/sampling.py. A
   user's items begin at items + `step` times its place. */
void ncf_draw(const int64_t *seen, const int64_t *offsets, int64_t num_items, const int64_t *users, int64_t count,
              int64_t num, const double *uniform, int32_t *items, int64_t step) {
    for (int64_t u = 0; u < count; u++, uniform += num, items += step) {
        const int64_t *own = seen + offsets[users[u]];
        const int64_t num_own = offsets[users[u] + 1] - offsets[users[u]], size = num_items - num_own;
        for (int64_t n = 0; n < num; n++) {
            const int64_t rank = (int64_t)(uniform[n] * (double)size);
            items[n] = size ? (int32_t)(rank + skipped_up_to(own, num_own, rank)) : -1;
        }
    }
}

#define PREFETCHED_SAMPLES 24 /* rows that memory is asked for before they are read */

/* Rows of users [N] and items [N, per_positive], in an order. */
void ncf_reorder(const int64_t *order, int64_t count, const int64_t *users, const int32_t *items, int64_t per_positive,
                 int64_t *to_users, int64_t *to_items) {
    for (int64_t i = 0; i < count; i++) {
        if (i + PREFETCHED_SAMPLES < count) {
            const int64_t ahead = order[i + PREFETCHED_SAMPLES];
            __builtin_prefetch(users + ahead);
            for (int64_t n = 0; n < per_positive; n += 16) __builtin_prefetch(items + ahead * per_positive + n);
            __builtin_prefetch(items + (ahead + 1) * per_positive - 1);
        }
        const int32_t *from = items + order[i] * per_positive;
        to_users[i] = users[order[i]];
        for (int64_t n = 0; n < per_positive; n++) to_items[i * per_positive + n] = from[n];
    }
}

/* Places p · num_shared + s where the user of positive p has seen shared item s, ascending; returns how many. mark: zeros
   for all items, and zeros again in the end; before and found: scratch for num_shared, and for as many bits. */
int64_t ncf_seen_places(const int64_t *seen, const int64_t *offsets, const int64_t *users, int64_t positives,
                        const int64_t *shared, int64_t num_shared, int32_t *mark, int32_t *before, uint64_t *found,
                        int64_t *places) {
    int64_t count = 0;
    for (int64_t s = 0; s < num_shared; s++) { /* an item may be shared twice: a chain from its last place on */
        before[s] = mark[shared[s]];
        mark[shared[s]] = (int32_t)s + 1;
    }
    for (int64_t p = 0; p < positives; p++) {
        for (int64_t i = offsets[users[p]]; i < offsets[users[p] + 1]; i++)
            for (int32_t s = mark[seen[i]]; s; s = before[s - 1]) found[(s - 1) / 64] |= 1ull << (s - 1) % 64;
        for (int64_t word = 0; word * 64 < num_shared; word++)
            for (; found[word]; found[word] &= found[word] - 1)
                places[count++] = p * num_shared + word * 64 + __builtin_ctzll(found[word]);
    }
    for (int64_t s = 0; s < num_shared; s++) mark[shared[s]] = 0;
    return count;
}

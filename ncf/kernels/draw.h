/* Samples of an epoch: items that users have not interacted with, by rank, and the order of the batches. */

/* How many of a user's ascending keys are at most `query`. */
#define COUNT_UP_TO(name, type) \
    static int64_t name(const type *keys, int64_t count, int64_t query) { \
        const type *from = keys; \
        while (count > 1) { \
            const int64_t half = count / 2; \
            from += half & -(int64_t)(from[half - 1] <= query); /* no branch */ \
            count -= half; \
        } \
        return from - keys + (count == 1 && *from <= query); \
    }
COUNT_UP_TO(count_up_to, int64_t)
COUNT_UP_TO(count_up_to_short, int32_t)
#undef COUNT_UP_TO

/* For each of `count` users, `num` items: that of rank ⌊uniform · size⌋ among those outside the user's set, or -1 where
   there is none. keys: of 8 bytes if `wide`, else of 4; see UnseenItems in ncf/data/sampling.py. A user's items begin at
   items + `step` times its place. */
void ncf_draw(const void *keys, int wide, const int64_t *offsets, const int64_t *sizes, int64_t stride,
              const int64_t *users, int64_t count, int64_t num, const double *uniform, int32_t *items, int64_t step) {
    for (int64_t u = 0; u < count; u++, uniform += num, items += step) {
        const int64_t user = users[u], from = offsets[user], own = offsets[user + 1] - from, before = user * stride;
        for (int64_t n = 0; n < num; n++) {
            const int64_t rank = (int64_t)(uniform[n] * (double)sizes[user]);
            const int64_t skipped = wide ? count_up_to((const int64_t *)keys + from, own, before + rank)
                                         : count_up_to_short((const int32_t *)keys + from, own, before + rank);
            items[n] = sizes[user] ? (int32_t)(rank + skipped) : -1;
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

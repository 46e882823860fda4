/* Which places of a batch name the same row: the rows' gradients are added in the order of their places. */

typedef struct {
    int32_t *slots;       /* open addressing by id; a power of two, at least twice as many as there are places */
    int32_t *first, *last; /* [rows]: a row's first and last place */
    int32_t *next;        /* [places]: the next place of the same row, or -1 */
    int64_t *ids;         /* [rows] */
    int64_t rows, mask;
    int shift;
} Rows;

/* Numbers of 4 bytes that the lists of so many places take, an even number: the ids' 8 bytes come first. */
static int64_t rows_size(int64_t places) {
    int64_t slots = 2;
    while (slots < 2 * places) slots *= 2;
    return (2 * places + slots + 3 * places + 1) / 2 * 2;
}

static void rows_place(Rows *r, void *memory, int64_t places) {
    int64_t slots = 2;
    r->shift = 63;
    while (slots < 2 * places) slots *= 2, r->shift--;
    r->mask = slots - 1;
    r->ids = memory;
    r->slots = (int32_t *)(r->ids + places);
    r->first = r->slots + slots, r->last = r->first + places, r->next = r->last + places;
}

static void rows_clear(Rows *r) {
    r->rows = 0;
    memset(r->slots, 0xff, sizeof(int32_t) * (r->mask + 1));
}

static void rows_add(Rows *r, const int64_t *ids, int64_t count, int32_t place) {
    for (int64_t i = 0; i < count; i++, place++) {
        const int64_t id = ids[i];
        int64_t at = (int64_t)((uint64_t)id * 0x9E3779B97F4A7C15u >> r->shift);
        while (r->slots[at] >= 0 && r->ids[r->slots[at]] != id) at = (at + 1) & r->mask;
        int32_t row = r->slots[at];
        if (row < 0) {
            row = r->slots[at] = (int32_t)r->rows++;
            r->ids[row] = id;
            r->first[row] = place;
        } else
            r->next[r->last[row]] = place;
        r->last[row] = place;
        r->next[place] = -1;
    }
}

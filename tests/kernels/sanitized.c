/* Samples, trains, ranks and selects with several threads, to be run under a sanitizer: `make sanitize`. Returns 1 if the
   bits depend on them. */

#include "../../ncf/kernels/native.c"

#include <stdio.h>

#define USERS 37
#define ITEMS 53
#define FACTORS 12
#define HALF 5
#define HIDDEN 7
#define BATCHES 3
#define POSITIVES 900
#define SHARED 40

static uint64_t state;

static uint64_t drawn(uint64_t below) { return (state = state * 6364136223846793005u + 1442695040888963407u) / (1u << 31) % below; }

static Parameter parameter(int64_t rows, int64_t row) {
    const int64_t size = rows * row;
    Parameter p = {calloc(size, 4), calloc(size, 4), calloc(size, 4), size, row, 0.01f, 0.1f, 0.0f};
    for (int64_t i = 0; i < size; i++) p.value[i] = (float)drawn(1000) / 1000.0f - 0.5f;
    return p;
}

static double sum_of(const Parameter *p) {
    double sum = 0.0;
    for (int64_t i = 0; i < p->size; i++) sum += p->value[i] * (double)(i % 97 + 1);
    free(p->value), free(p->mean), free(p->square);
    return sum;
}

static double trained(int rule, int shared, int threads) {
    static int64_t users[BATCHES * POSITIVES], items[BATCHES * POSITIVES * 5], common[BATCHES * SHARED];
    const int64_t each = shared ? 1 : 5, seen[] = {3, 41, 900, 5, 6, 7}, seen_offsets[] = {0, 3, 6, 6};
    const float ones[BATCHES] = {1.0f, 0.5f, 0.25f};
    float losses[BATCHES];
    state = 1;
    for (int i = 0; i < BATCHES * POSITIVES; i++) users[i] = (int64_t)drawn(USERS);
    for (int i = 0; i < BATCHES * POSITIVES * each; i++) items[i] = (int64_t)drawn(ITEMS);
    for (int i = 0; i < BATCHES * SHARED; i++) common[i] = (int64_t)drawn(ITEMS);
    Model m = {.num_users = USERS, .num_items = ITEMS, .factors = FACTORS, .rule = rule, .beta1 = 0.9f, .beta2 = 0.999f};
    m.epsilon = 1e-8f, m.temperature = 1.0f;
    m.user_gmf = parameter(USERS, FACTORS), m.item_gmf = parameter(ITEMS, FACTORS);
    m.gmf_head = parameter(1, FACTORS), m.bias = parameter(1, 1);
    if (!shared) {
        m.layers = 1, m.dim = HALF, m.outputs[0] = HIDDEN;
        m.user_mlp = parameter(USERS, HALF), m.item_mlp = parameter(ITEMS, HALF);
        m.weights[0] = parameter(HIDDEN, 2 * HALF), m.biases[0] = parameter(1, HIDDEN);
        m.mlp_head = parameter(1, HIDDEN);
    }
    const Chunk c = {users, items, common, seen, seen_offsets, ones, ones, ones, losses,
                     BATCHES, POSITIVES, each, shared ? SHARED : 0};
    if (ncf_train(&m, &c, ncf_lanes(), threads) != -1) return NAN;
    double sum = sum_of(&m.user_gmf) + sum_of(&m.item_gmf) + sum_of(&m.gmf_head) + sum_of(&m.bias);
    if (!shared)
        sum += sum_of(&m.user_mlp) + sum_of(&m.item_mlp) + sum_of(&m.mlp_head) + sum_of(&m.weights[0]) +
               sum_of(&m.biases[0]);
    return sum + losses[BATCHES - 1];
}

#define RANKED 200
#define CATALOGUE 1100
#define WIDTH 32
#define OUTPUTS 16
#define LISTED 200
#define BEST 10
#define LEFT_OUT 5

static float *random_floats(int64_t size) {
    float *values = malloc(size * sizeof(float));
    for (int64_t i = 0; i < size; i++) values[i] = (float)drawn(2001) / 1000.0f - 1.0f;
    return values;
}

/* Of a product alone, whose selection has a first pass in bytes, or of a network. */
static double ranked(int network, int lanes, int threads) {
    static int64_t users[RANKED], items[CATALOGUE], positives[RANKED], lists[RANKED * LISTED], offsets[RANKED + 1],
        left_out[RANKED * LEFT_OUT], places[RANKED + 1], ranks[3][RANKED], best_items[RANKED * BEST];
    static float scores[RANKED * LISTED], best_scores[RANKED * BEST], numbers[4 * (CATALOGUE + COLUMNS) + 1];
    static uint8_t panel[(CATALOGUE + COLUMNS) * WIDTH];
    const int64_t outputs[] = {OUTPUTS}, columns = (CATALOGUE + COLUMNS - 1) / COLUMNS * COLUMNS;
    double sum = 0.0;
    state = 2;
    float *own[] = {random_floats(USERS * WIDTH), random_floats(CATALOGUE * WIDTH), random_floats(USERS),
                    random_floats(CATALOGUE),     random_floats(OUTPUTS),           random_floats(WIDTH * OUTPUTS),
                    random_floats(OUTPUTS)};
    const float *weights[] = {own[5]}, *biases[] = {own[6]};
    Tables t = {own[0], own[1], own[2], own[3], network ? own[4] : 0, weights, biases, outputs, USERS, CATALOGUE,
                network ? WIDTH : 0, network ? 0 : WIDTH, network ? WIDTH : 0, network, network ? WIDTH : 0, 0.5f};
    for (int64_t i = 0; i < CATALOGUE; i++) items[i] = i;
    for (int64_t u = 0; u < RANKED; u++) {
        users[u] = (int64_t)drawn(USERS), positives[u] = (int64_t)drawn(CATALOGUE - LEFT_OUT);
        for (int64_t c = 0; c < LISTED; c++) lists[u * LISTED + c] = (int64_t)drawn(CATALOGUE + 1) - 1;
        for (int64_t c = 0; c < LEFT_OUT; c++) left_out[u * LEFT_OUT + c] = positives[u] + 1 + c;
        offsets[u + 1] = (u + 1) * LEFT_OUT, places[u + 1] = u < 2 ? 0 : u + 1; /* the first has none, the third three */
    }
    int done = ncf_score(&t, lanes, threads, users, RANKED, lists, LISTED, LISTED, scores) == -1;
    for (int64_t i = 0; i < RANKED * LISTED; i++) sum += lists[i] < 0 ? 0.0 : scores[i] * (double)(i % 97 + 1);
    done &= ncf_score(&t, lanes, threads, users, RANKED, items, 0, LISTED, scores) == -1;
    for (int64_t i = 0; i < RANKED * LISTED; i++) sum += scores[i] * (double)(i % 89 + 1);
    done &= ncf_rank(&t, lanes, threads, users, RANKED, positives, lists, LISTED, LISTED, ranks[0], ranks[1]) == 1;
    done &= ncf_rank_catalogue(&t, lanes, threads, users, RANKED, places, positives, RANKED, CATALOGUE, offsets,
                               left_out, RANKED * LEFT_OUT, ranks[2]) == 1;
    done &= network || ncf_bytes(&t, lanes, threads, items, CATALOGUE, columns, panel, numbers) == 1;
    done &= ncf_top_k(&t, lanes, threads, users, RANKED, items, CATALOGUE, offsets, left_out, RANKED * LEFT_OUT, BEST,
                      network ? 0 : panel, network ? 0 : numbers, network ? 0 : columns, best_scores, best_items) == 1;
    for (int64_t i = 0; i < RANKED; i++)
        sum += (double)(ranks[0][i] + 3 * ranks[1][i] + 7 * ranks[2][i]) * (double)(i % 83 + 1);
    for (int64_t i = 0; i < RANKED * BEST; i++) sum += (best_scores[i] + (double)best_items[i]) * (double)(i % 79 + 1);
    lists[RANKED * LISTED - 1] = CATALOGUE; /* an unknown item, in the last piece */
    done &= ncf_score(&t, lanes, threads, users, RANKED, lists, LISTED, LISTED, scores) == RANKED + RANKED * LISTED - 1;
    for (int i = 0; i < (int)(sizeof own / sizeof *own); i++) free(own[i]);
    return done ? sum : NAN;
}

/* Samples of users with few and with all items, reordered. */
static int sampled(void) {
    enum { TRAINED = 3, CATALOGUE_OF = 5, EACH = 4 };
    const int64_t seen[] = {0, 4, 0, 1, 2, 3, 4}, offsets[] = {0, 2, 2, 7}, users[] = {0, 1, 2}, order[] = {2, 0, 1};
    int32_t items[TRAINED * EACH];
    double uniform[TRAINED * EACH];
    int64_t to_users[TRAINED], to_items[TRAINED * EACH];
    for (int i = 0; i < TRAINED * EACH; i++) uniform[i] = (double)drawn(1000) / 1000.0;
    ncf_draw(seen, offsets, CATALOGUE_OF, users, TRAINED, EACH, uniform, items, EACH);
    ncf_reorder(order, TRAINED, users, items, EACH, to_users, to_items);
    int done = 1;
    for (int i = 0; i < EACH; i++)
        done &= items[i] > 0 && items[i] < 4 && items[EACH + i] < CATALOGUE_OF && items[2 * EACH + i] == -1 &&
                to_items[i] == -1 && to_items[EACH + i] == items[i];
    return done && to_users[0] == 2;
}

int main(void) {
    int failed = !sampled();
    for (int rule = ADAMW; rule <= ADAM; rule++)
        for (int shared = 0; shared < 2; shared++) {
            const double one = trained(rule, shared, 1);
            for (int threads = 2; threads <= 5; threads++) failed |= trained(rule, shared, threads) != one;
        }
    for (int lanes = 4; lanes <= ncf_lanes(); lanes *= 2)
        for (int network = 0; network < 2; network++) {
            const double one = ranked(network, lanes, 1);
            for (int threads = 3; threads <= 5; threads += 2) failed |= ranked(network, lanes, threads) != one;
        }
    puts(failed ? "wrong, or the bits depend on the threads" : "the same bits for any number of threads");
    return failed;
}

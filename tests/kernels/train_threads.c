/* Trains with several threads, to be run under a sanitizer: `make sanitize`. Returns 1 if the bits depend on them. */

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

int main(void) {
    int failed = 0;
    for (int rule = ADAMW; rule <= ADAM; rule++)
        for (int shared = 0; shared < 2; shared++) {
            const double one = trained(rule, shared, 1);
            for (int threads = 2; threads <= 5; threads++) failed |= trained(rule, shared, threads) != one;
        }
    puts(failed ? "the bits depend on the threads" : "the same bits for any number of threads");
    return failed;
}

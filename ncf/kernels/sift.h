/* The first pass of a selection by a product alone: rows in bytes, whose products tell which items may be among the best.

   A row x is s·q + e: a scale, whole numbers from -STEPS to STEPS, and a rest. Of a user u and an item i

       ⟨u, i⟩ <= s_u s_i ⟨q_u, q_i⟩ + ‖u‖ ‖e_i‖ + ‖e_u‖ ‖s_i q_i‖

   by Cauchy and Schwarz. To it comes a bound of what float arithmetic rounds, here and in the exact score. An item that
   does not reach the worst of the best so far even so is not looked at again; every other is scored exactly. */

#define BLOCK 16   /* items side by side */
#define TOGETHER 6 /* users for whom a block is read once */
#define STEPS 63   /* of an item; a user has 127: two products of bytes and their sum fit 16 bits */
#define COLUMNS 64 /* a panel has a multiple of them */
#define COLUMNS_PER_PIECE 512 /* that a thread lays out at a time */

/* Items in bytes, q + STEPS + 1: blocks of [size / 4, BLOCK, 4], or where `lanes` is 4 of [size / 4, 4, BLOCK]. Beside
   each its scale, ‖e‖ with the rounding, ‖s q‖ and bias. */
typedef struct {
    const uint8_t *panel;
    const float *scale, *slack, *length, *bias;
    int64_t size;
} Bytes;

typedef int32_t wholes __attribute__((vector_size(16)));

typedef struct {
    float scale, norm, rest, cut; /* ‖u‖, ‖e‖, and what a score must reach */
    int32_t offset;               /* -(STEPS + 1) Σ q */
} Asked;

static float rounding(int64_t size) { return 4.0f * (float)(size + 8) * FLT_EPSILON; }

/* The whole numbers of a row, and bounds of ‖e‖ and ‖s q‖; returns the scale. A row with a number that is not finite has
   no bound. Norms are of multiples of the scale: their squares neither vanish nor overflow. */
static float in_steps(const float *row, int64_t size, int steps, int8_t *whole, float *rest, float *length) {
    float4 largest = {0.0f}, odd = {0.0f}, rests = {0.0f}, squares = {0.0f};
    for (int64_t f = 0; f < size; f += 4) { /* rows are padded to whole vectors */
        const wholes x = (wholes)*(const float4 *)(row + f) & 0x7fffffff, more = (wholes)((float4)x > largest);
        largest = (float4)((x & more) | ((wholes)largest & ~more));
        odd += (float4)x * 0.0f;
    }
    float most = largest[0];
    for (int l = 1; l < 4; l++) most = largest[l] > most ? largest[l] : most;
    if (odd[0] + odd[1] + odd[2] + odd[3] != 0.0f) {
        memset(whole, 0, size);
        *rest = INFINITY, *length = 0.0f;
        return 0.0f;
    }
    const float least = 1e-30f, step = most / (float)steps, scale = step > least ? step : least, by = 1.0f / scale;
    for (int64_t f = 0; f < size; f += 4) {
        const float4 x = *(const float4 *)(row + f) * by;
        const float4 half = (float4)(((wholes)x & (int32_t)0x80000000) | 0x3f000000); /* ½ with the sign of x */
        const wholes q = __builtin_convertvector(x + half, wholes);
        const float4 near = __builtin_convertvector(q, float4);
        for (int l = 0; l < 4; l++) whole[f + l] = (int8_t)q[l];
        rests += (x - near) * (x - near);
        squares += near * near;
    }
    const float more = 1.0f + rounding(size); /* x itself is rounded, by less than 1e-4 */
    *rest = scale * (more * sqrtf(rests[0] + rests[1] + rests[2] + rests[3]) + 1e-4f * sqrtf((float)size));
    *length = scale * more * sqrtf(squares[0] + squares[1] + squares[2] + squares[3]);
    return scale;
}

/* Of `rows` users, their bytes [rows, size], and the columns from `first` to `end`, multiples of COLUMNS: a bit for each
   column that may reach the user's cut, [rows, (end - first) / BLOCK]. */
typedef void (*Sift)(const Bytes *b, int rows, const int8_t *users, const Asked *asked, int64_t first, int64_t end,
                     uint16_t *marks);

#define EACH_ROW _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++)
#define SIFT(name, TARGET)                                                                                         \
    TARGET static void name(const Bytes *b, int rows, const int8_t *users, const Asked *asked, int64_t first,      \
                            int64_t end, uint16_t *marks) {                                                        \
        if (rows == TOGETHER)                                                                                      \
            name##_rows(b, TOGETHER, users, asked, first, end, marks);                                             \
        else                                                                                                       \
            for (int r = 0; r < rows; r++)                                                                         \
                name##_rows(b, 1, users + r * b->size, asked + r, first, end, marks + r * (end - first) / BLOCK);  \
    }

typedef int16_t shorts __attribute__((vector_size(16)));
typedef int16_t four_shorts __attribute__((vector_size(8)));
typedef uint8_t octet __attribute__((vector_size(8), aligned(1), may_alias));

/* Four products of an item's 7 bits and a user's 8 fit 16 bits. */
static inline __attribute__((always_inline)) void sift_plain_rows(const Bytes *b, int rows, const int8_t *users,
                                                                  const Asked *asked, int64_t first, int64_t end,
                                                                  uint16_t *marks) {
    for (int64_t c = first; c < end; c += 8) {
        const uint8_t *from = b->panel + c / BLOCK * BLOCK * b->size + c % BLOCK;
        wholes sum[TOGETHER][2] = {{{0}}};
        for (int64_t f = 0; f < b->size; f += 4, from += 4 * BLOCK) {
            shorts item[4];
            for (int l = 0; l < 4; l++)
                item[l] = __builtin_convertvector(*(const octet *)(from + l * BLOCK), shorts) - (STEPS + 1);
            EACH_ROW {
                const int8_t *user = users + r * b->size + f;
                const shorts part = item[0] * (int16_t)user[0] + item[1] * (int16_t)user[1] +
                                    item[2] * (int16_t)user[2] + item[3] * (int16_t)user[3];
                four_shorts halves[2];
                memcpy(halves, &part, sizeof part);
                for (int h = 0; h < 2; h++) sum[r][h] += __builtin_convertvector(halves[h], wholes);
            }
        }
        EACH_ROW {
            const Asked *u = asked + r;
            unsigned reach = 0;
            for (int l = 0; l < 8; l++) {
                const float most = (float)sum[r][l / 4][l % 4] * b->scale[c + l] * u->scale + b->bias[c + l] +
                                   u->norm * b->slack[c + l] + u->rest * b->length[c + l];
                reach |= (unsigned)!(most < u->cut) << l; /* written so that a NaN reaches it */
            }
            uint16_t *mark = marks + r * (end - first) / BLOCK + (c - first) / BLOCK;
            *mark = c % BLOCK ? *mark | reach << 8 : reach;
        }
    }
}
SIFT(sift_plain, )

#if defined(__x86_64__) && !defined(NCF_ANY_PROCESSOR)
#include <immintrin.h>

static inline int32_t four_bytes(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, sizeof four);
    return four;
}

static inline __attribute__((always_inline, target("avx2,fma"))) void sift_avx2_rows(
    const Bytes *b, int rows, const int8_t *users, const Asked *asked, int64_t first, int64_t end, uint16_t *marks) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t c = first; c < end; c += 8) {
        const uint8_t *from = b->panel + c / BLOCK * BLOCK * b->size + c % BLOCK * 4;
        __m256i sum[TOGETHER];
        EACH_ROW sum[r] = _mm256_set1_epi32(asked[r].offset);
        for (int64_t f = 0; f < b->size; f += 4, from += 4 * BLOCK) {
            const __m256i item = _mm256_loadu_si256((const __m256i *)from);
            EACH_ROW {
                const __m256i user = _mm256_set1_epi32(four_bytes(users + r * b->size + f));
                sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(_mm256_maddubs_epi16(item, user), ones));
            }
        }
        const __m256 scale = _mm256_loadu_ps(b->scale + c), slack = _mm256_loadu_ps(b->slack + c);
        const __m256 length = _mm256_loadu_ps(b->length + c), bias = _mm256_loadu_ps(b->bias + c);
        EACH_ROW {
            const Asked *u = asked + r;
            __m256 most = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r]), scale);
            most = _mm256_fmadd_ps(most, _mm256_set1_ps(u->scale), bias);
            most = _mm256_fmadd_ps(_mm256_set1_ps(u->norm), slack, most);
            most = _mm256_fmadd_ps(_mm256_set1_ps(u->rest), length, most);
            const __m256 reaches = _mm256_cmp_ps(most, _mm256_set1_ps(u->cut), _CMP_NLT_UQ);
            ((uint8_t *)(marks + r * (end - first) / BLOCK))[(c - first) / 8] = (uint8_t)_mm256_movemask_ps(reaches);
        }
    }
}
SIFT(sift_avx2, __attribute__((target("avx2,fma"))))

static inline __attribute__((always_inline, target("avx512f,avx512vnni"))) void sift_vnni_rows(
    const Bytes *b, int rows, const int8_t *users, const Asked *asked, int64_t first, int64_t end, uint16_t *marks) {
    for (int64_t c = first; c < end; c += 2 * BLOCK) {
        const uint8_t *from = b->panel + c * b->size;
        __m512i sum[TOGETHER][2];
        EACH_ROW sum[r][0] = sum[r][1] = _mm512_set1_epi32(asked[r].offset);
        for (int64_t f = 0; f < b->size; f += 4, from += 4 * BLOCK) {
            const __m512i item = _mm512_loadu_si512(from), next = _mm512_loadu_si512(from + BLOCK * b->size);
            EACH_ROW {
                const __m512i user = _mm512_set1_epi32(four_bytes(users + r * b->size + f));
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], item, user);
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], next, user);
            }
        }
        for (int v = 0; v < 2; v++) {
            const int64_t at = c + v * BLOCK;
            const __m512 scale = _mm512_loadu_ps(b->scale + at), slack = _mm512_loadu_ps(b->slack + at);
            const __m512 length = _mm512_loadu_ps(b->length + at), bias = _mm512_loadu_ps(b->bias + at);
            EACH_ROW {
                const Asked *u = asked + r;
                __m512 most = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][v]), scale);
                most = _mm512_fmadd_ps(most, _mm512_set1_ps(u->scale), bias);
                most = _mm512_fmadd_ps(_mm512_set1_ps(u->norm), slack, most);
                most = _mm512_fmadd_ps(_mm512_set1_ps(u->rest), length, most);
                marks[(r * (end - first) + at - first) / BLOCK] =
                    _mm512_cmp_ps_mask(most, _mm512_set1_ps(u->cut), _CMP_NLT_UQ);
            }
        }
    }
}
SIFT(sift_vnni, __attribute__((target("avx512f,avx512vnni"))))
#endif

static Sift sift_of(int lanes) {
#if defined(__x86_64__) && !defined(NCF_ANY_PROCESSOR)
    __builtin_cpu_init();
    if (lanes == 16 && __builtin_cpu_supports("avx512vnni")) return sift_vnni;
    if (lanes >= 8) return sift_avx2;
#endif
    (void)lanes;
    return sift_plain;
}

/* Items that may be selected ascend, each once. Returns whether these do, and are known. */
static int ascend(const Tables *t, const int64_t *items, int64_t num_items) {
    int done = 1;
    for (int64_t c = 0; c < num_items && done; c++)
        done = items[c] >= 0 && items[c] < t->num_items && (!c || items[c] > items[c - 1]);
    return done;
}

typedef struct {
    const Tables *t;
    int apart;
    const int64_t *items;
    int64_t num_items, columns;
    uint8_t *panel;
    float *numbers;
} Packed;

static int64_t pack_piece(const void *job, int64_t from, int64_t to) {
    const Packed *p = job;
    const Tables *t = p->t;
    const int64_t size = t->factors, columns = p->columns;
    int8_t *whole = malloc(size);
    for (int64_t c = from; c < to && whole; c++) {
        float scale = 0.0f, rest = 0.0f, length = 0.0f, bias = -INFINITY;
        memset(whole, 0, size);
        if (c < p->num_items) {
            const float own = t->item_bias ? t->item_bias[p->items[c]] : 0.0f;
            scale = in_steps(t->items + p->items[c] * size, size, STEPS, whole, &rest, &length);
            bias = own + rounding(size) * fabsf(own) + 1e-30f; /* products below 1e-38 vanish */
        }
        for (int64_t f = 0; f < size; f++) whole[f] += STEPS + 1;
        uint8_t *to_row = p->panel + c / BLOCK * BLOCK * size + (p->apart ? c % BLOCK : c % BLOCK * 4);
        for (int64_t f = 0; f < size; f += 4, to_row += 4 * BLOCK)
            for (int l = 0; l < 4; l++) to_row[p->apart ? l * BLOCK : l] = (uint8_t)whole[f + l];
        p->numbers[c] = scale, p->numbers[columns + c] = rest + rounding(size) * (length + rest);
        p->numbers[2 * columns + c] = length, p->numbers[3 * columns + c] = bias;
    }
    free(whole);
    return whole ? FINE : 0;
}

/* Lay items out in bytes. panel: [columns, factors]; numbers: [4, columns], of Bytes, and then a bound of the norms. */
int64_t ncf_bytes(const Tables *t, int lanes, int64_t threads, const int64_t *items, int64_t num_items, int64_t columns,
                  uint8_t *panel, float *numbers) {
    const Packed p = {t, sift_of(lanes) == sift_plain, items, num_items, columns, panel, numbers};
    float longest = 0.0f;
    if (!ascend(t, items, num_items) || in_pieces(threads, columns, COLUMNS_PER_PIECE, pack_piece, &p) != FINE) return 0;
    for (int64_t c = 0; c < columns; c++) {
        const float norm = numbers[columns + c] + numbers[2 * columns + c];
        if (norm > longest && norm <= FLT_MAX) longest = norm;
    }
    numbers[4 * columns] = longest;
    return 1;
}

/* Answers from a pack of words, in C99: no heap, no globals, no byte order but the machine's own.
 *
 * The functions are fixed and the pack is data: a new model of the same kind is new words.  x has a
 * float for each column, NAN where it is missing; y takes the outputs.  Only what is called is
 * linked.  Compile with -ffp-contract=off where several machines have to agree bit for bit. */
#ifndef EDGE_MODEL_H
#define EDGE_MODEL_H
#include <math.h>
#include <stdint.h>

typedef union { float f; int32_t i; } edge_word;
typedef struct { const char *text; uint32_t length; float value; } edge_token;
enum { EDGE_IDENTITY, EDGE_SIGMOID, EDGE_SOFTMAX };
enum { EDGE_NONE, EDGE_RELU, EDGE_TANH, EDGE_LOGISTIC };
enum { EDGE_TABLE, EDGE_BAYES, EDGE_LEAF_LINEAR };

static inline void edge_softmax(float *y, int n) {
  float most = y[0], total = 0;
  int o;
  for (o = 1; o < n; o++) if (y[o] > most) most = y[o];
  for (o = 0; o < n; o++) total += y[o] = expf(y[o] - most);
  for (o = 0; o < n; o++) y[o] /= total;
}

static inline void edge_link(int link, float *y, int n) {
  int o;
  if (link == EDGE_SIGMOID) for (o = 0; o < n; o++) y[o] = 1 / (1 + expf(-y[o]));
  if (link == EDGE_SOFTMAX) edge_softmax(y, n);
}

/* for each column: least, greatest number, what stands for a smaller, for a greater one; NAN stays */
static inline void edge_within(const edge_word *m, int n, const float *x, float *b) {
  for (int i = 0; i < n; i++, m += 4)
    b[i] = x[i] < m[0].f ? m[2].f : x[i] > m[1].f ? m[3].f : x[i];
}

/* columns, outputs, link | bias | for each column: center (high, low), weights */
static inline void edge_linear(const edge_word *m, const float *x, float *y) {
  int n = m[0].i, wide = m[1].i, link = m[2].i, i, o;
  m += 3;
  for (o = 0; o < wide; o++) y[o] = m[o].f;
  m += wide;
  for (i = 0; i < n; i++, m += 2 + wide) {
    float z = x[i] - m[0].f - m[1].f;
    if (z == z) for (o = 0; o < wide; o++) y[o] += z * m[2 + o].f;
  }
  edge_link(link, y, wide);
}

/* center (high, low), factor of column i at m: z, cut at limit */
static inline float edge_scaled(const edge_word *m, float x, float limit) {
  float z = (x - m[0].f - m[1].f) * m[2].f;
  return z > limit ? limit : z < -limit ? -limit : z;
}

/* 32-bit murmur3 */
static inline uint32_t edge_hash(const char *text, uint32_t n, uint32_t seed) {
  const unsigned char *b = (const unsigned char *)text;
  uint32_t h = seed, k = 0, i;
  for (i = 0; i < n; i++) {
    k |= (uint32_t)b[i] << (8 * (i & 3));
    if ((i & 3) == 3 || i + 1 == n) {
      k *= 0xcc9e2d51u;
      h ^= ((k << 15) | (k >> 17)) * 0x1b873593u;
      if ((i & 3) == 3) h = ((h << 13) | (h >> 19)) * 5 + 0xe6546b64u;
      k = 0;
    }
  }
  h ^= n;
  h = (h ^ (h >> 16)) * 0x85ebca6bu;
  h = (h ^ (h >> 13)) * 0xc2b2ae35u;
  return h ^ (h >> 16);
}

/* columns, outputs, experts, link, rows, buckets, seed, river, signed, limit | bias | votes |
 * for each column: center (high, low), factor, weights | keys, ascending | table.
 * raw has room for outputs · experts; the caller spells the tokens, as docs/edge.md says. */
static inline void edge_hashed(const edge_word *m, const float *x, const edge_token *tokens, int n,
                               float *raw, float *y) {
  int columns = m[0].i, outputs = m[1].i, experts = m[2].i, rows = m[4].i, river = m[7].i;
  int wide = outputs * experts, i, o;
  uint32_t buckets = (uint32_t)m[5].i;
  const edge_word *votes = m + 10 + wide, *column = votes + experts;
  const edge_word *keys = column + columns * (3 + wide), *table = keys + rows;
  for (o = 0; o < wide; o++) raw[o] = m[10 + o].f;
  for (i = 0; i < columns; i++, column += 3 + wide) {
    float z = edge_scaled(column, x[i], m[9].f);
    if (z == z) for (o = 0; o < wide; o++) raw[o] += z * column[3 + o].f;
  }
  for (i = 0; i < n; i++) {
    uint32_t h = edge_hash(tokens[i].text, tokens[i].length, (uint32_t)m[6].i);
    float value = tokens[i].value;
    int low = 0, high = rows - 1;
    if (river) {
      if (h >> 31 && m[8].i) value = -value;
      h = h >> 31 ? buckets - 1 - ~h % buckets : h % buckets;
    } else h &= buckets - 1;
    while (low < high) {
      int middle = (low + high) / 2;
      if ((uint32_t)keys[middle].i < h) low = middle + 1; else high = middle;
    }
    if (low < rows && (uint32_t)keys[low].i == h)
      for (o = 0; o < wide; o++) raw[o] += value * table[low * wide + o].f;
  }
  for (o = 0; o < outputs; o++) y[o] = 0;
  for (i = 0; i < experts; i++, raw += outputs) {
    edge_link(m[3].i, raw, outputs);
    for (o = 0; o < outputs; o++) y[o] += votes[i].f * raw[o];
  }
}

/* numbers, ids | for each id: rows, width, table by row.  v: the numbers, then a row for each id */
static inline void edge_ids(const edge_word *m, const float *x, float *v) {
  int numbers = m[0].i, ids = m[1].i, i, k;
  for (i = 0; i < numbers; i++) *v++ = x[i];
  for (m += 2; ids; ids--, m += 2 + m[0].i * m[1].i) {
    double row = x[i] == x[i] ? fmod(floor(x[i]), m[0].i) : 0;
    const edge_word *from = m + 2 + m[1].i * (int)(row < 0 ? row + m[0].i : row);
    for (k = 0; k < m[1].i; k++) *v++ = from[k].f;
    i++;
  }
}

/* layers, columns, widest, link, limit | for each column: center (high, low), factor |
 * for each layer: inputs, outputs, activation, weights by output, bias.
 * h has room for twice the widest. */
static inline void edge_mlp(const edge_word *m, const float *x, float *h, float *y) {
  int layers = m[0].i, columns = m[1].i, link = m[3].i, i, o, outputs = 0;
  float limit = m[4].f, *from = h, *to = h + m[2].i;
  m += 5;
  for (i = 0; i < columns; i++, m += 3) {
    float z = edge_scaled(m, x[i], limit);
    from[i] = z == z ? z : 0;
  }
  for (; layers; layers--) {
    int inputs = m[0].i, kind = m[2].i;
    const edge_word *bias = m + 3 + inputs * m[1].i;
    float *swap = from;
    outputs = m[1].i;
    m += 3;
    for (o = 0; o < outputs; o++) {
      float sum = bias[o].f;
      for (i = 0; i < inputs; i++) sum += from[i] * (m++)->f;
      to[o] = kind == EDGE_RELU ? (sum > 0 ? sum : 0) : kind == EDGE_TANH ? tanhf(sum)
            : kind == EDGE_LOGISTIC ? 1 / (1 + expf(-sum)) : sum;
    }
    m += outputs;
    from = to;
    to = swap;
  }
  for (o = 0; o < outputs; o++) y[o] = from[o];
  edge_link(link, y, outputs);
}

/* kind, outputs, normalise, trees, branches, leaves, columns | roots |
 * for each branch: threshold, feature and flags, left and right |
 * table: for each leaf: outputs.  Else: for each column: center (high, low), factor; for each leaf:
 * outputs, scale; where terms begin, one more; for each term: column; for each output constant,
 * slope, mean (bayes) or slope (linear).  leaf has room for the outputs: it is double, since terms
 * are large and cancel. */
static inline void edge_forest(const edge_word *m, const float *x, double *leaf, float *y) {
  int kind = m[0].i, outputs = m[1].i, normalise = m[2].i, trees = m[3].i, t, o, i;
  int branches = m[4].i, leaves = m[5].i, columns = m[6].i;
  const edge_word *roots = m + 7, *branch = roots + trees, *rest = branch + 3 * branches;
  const edge_word *base = kind == EDGE_TABLE ? rest : rest + 3 * columns;
  int wide = kind == EDGE_TABLE ? outputs : outputs + 1;
  const edge_word *starts = base + leaves * wide, *terms = starts + leaves + 1;
  float total = 0;
  for (o = 0; o < outputs; o++) y[o] = 0;
  for (t = 0; t < trees; t++) {
    int at = roots[t].i;
    const edge_word *found;
    while (at >= 0) {
      const edge_word *b = branch + 3 * at;
      float value = x[b[1].i & 0xffff];
      int left = value != value ? (b[1].i >> 17) & 1
               : (b[1].i >> 16) & 1 ? value == b[0].f : value <= b[0].f;
      at = left ? (int16_t)((uint32_t)b[2].i & 0xffff) : (int16_t)((uint32_t)b[2].i >> 16);
    }
    found = base + ~at * wide;
    if (kind == EDGE_TABLE) {
      for (o = 0; o < outputs; o++) y[o] += found[o].f;
      continue;
    }
    if (found[outputs].f == 0) continue;
    for (o = 0; o < outputs; o++) leaf[o] = found[o].f;
    for (i = starts[~at].i; i < starts[~at + 1].i; i++) {
      const edge_word *term = terms + i * (1 + outputs * (kind == EDGE_BAYES ? 3 : 1));
      const edge_word *c = rest + 3 * term[0].i;
      double z = ((double)x[term[0].i] - c[0].f - c[1].f) * c[2].f;
      if (z != z) continue;
      term++;
      for (o = 0; o < outputs; o++) {
        if (kind == EDGE_BAYES) {
          double off = z - term[2].f;
          leaf[o] += term[0].f - term[1].f * off * off;
          term += 3;
        } else leaf[o] += (term++)->f * z;
      }
    }
    if (kind == EDGE_BAYES) {
      double most = leaf[0];
      float sum = 0;
      for (o = 1; o < outputs; o++) if (leaf[o] > most) most = leaf[o];
      for (o = 0; o < outputs; o++) sum += expf((float)(leaf[o] - most));
      for (o = 0; o < outputs; o++)
        y[o] += found[outputs].f * expf((float)(leaf[o] - most)) / sum;
    } else for (o = 0; o < outputs; o++) y[o] += (float)leaf[o];
  }
  for (o = 0; o < outputs; o++) total += y[o];
  if (normalise && total > 0) for (o = 0; o < outputs; o++) y[o] /= total;
}
#endif

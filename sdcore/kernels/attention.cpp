// Attention, softmax(q kᵀ / √d) v, on a CPU: no scores in memory, at the rate of a matrix product.
//
// Lanes are queries. A block of queries is turned so that each vector holds one channel of LANES
// queries; then scores are sᵀ = k qᵀ and the result is oᵀ = vᵀ pᵀ, where one number of k or v
// meets a vector of queries. So the softmax runs down the vectors, without shuffles. Keys come in
// blocks, and largest score and sum are kept as they come (online softmax: Milakov and Gimelshein
// 2018, arXiv:1805.02867; flash attention: Dao et al. 2022, arXiv:2205.14135).
//
// It has a plain C interface and knows nothing of torch, so that one build serves every release.

#include <array>
#include <atomic>

#include "vectors.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VECTORS = 4;  // 32 registers: 6 x 4 sums, 4 of queries, the keys
#elif defined(__AVX2__)
constexpr int VECTORS = 2;  // 16 registers: 6 x 2 sums, 2 of queries, the keys
#else
constexpr int VECTORS = 4;
#endif
constexpr int QUERIES = LANES * VECTORS;  // in a block
constexpr int TILE = 6;                   // keys, or channels of v, whose sums fill the registers
constexpr int KEYS = 48;                  // in a block, whose scores stay in the first cache
constexpr float SLACK = 8;                // a weight may be 2^8 before all that came is shrunk
constexpr float LOWEST = -1e30f;          // below every score, and finite: inf - inf is no number

typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));

template <class To, class From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline bool any(Bits mask) {
  const auto parts = as<std::array<uint64_t, sizeof mask / 8>>(mask);
  uint64_t bits = 0;
  for (uint64_t part : parts) bits |= part;
  return bits != 0;
}

// 2 to the power of x, to 1e-7, or to 1e-4 for numbers that are rounded to bfloat16 afterwards.
// Below 2^-126 it is that, and what is no number stays so.
template <bool EXACT>
inline Vec exp2(Vec x) {
  x = x < -126.f ? all(-126.f) : x;
  const Vec shifted = x + 12582912.f;  // 1.5 * 2^23: its last bits are x, rounded
  const Vec r = x - (shifted - 12582912.f);
  // Polynomials of the least relative error on -0.5 to 0.5.
  Vec y;
  if constexpr (EXACT) {
    y = r * 0.001327647129073739f + 0.009675540961325169f;
    y = y * r + 0.05550713092088699f;
    y = y * r + 0.24022120237350464f;
    y = y * r + 0.6931469440460205f;
    y = y * r + 1.f;
  } else {
    y = r * 0.0551716685295105f + 0.2426111251115799f;
    y = y * r + 0.6932609677314758f;
    y = y * r + 0.9999280571937561f;
  }
  return y * as<Vec>((as<Bits>(shifted) << 23) + 0x3f800000u);
}

// --- the two types of numbers -------------------------------------------------------------------

struct Float32 {
  static constexpr bool EXACT = true;
  typedef float Number;
  typedef float Unit;  // what is multiplied at once
  static constexpr int PAIR = 1;
  static Unit pair(Number a, Number) { return a; }
  static Vec dot(Vec sum, Vec many, Unit one) { return sum + many * one; }
  static void weights(Vec*, int) {}
  static void store(Number* to, Vec x, size_t count) { std::memcpy(to, &x, count * sizeof *to); }
};

struct BFloat16 {
  static constexpr bool EXACT = false;
  typedef uint16_t Number;
  typedef Number Numbers __attribute__((vector_size(LANES * 2)));
  typedef uint32_t Unit;  // two numbers, whose products are summed in float32
  static constexpr int PAIR = 2;
  static Unit pair(Number a, Number b) { return Unit(a) | Unit(b) << 16; }
  static Vec dot(Vec sum, Vec many, Unit one) {
#if defined(__AVX512BF16__)
    return as<Vec>(_mm512_dpbf16_ps(as<__m512>(sum), as<__m512bh>(many),
                                    as<__m512bh>(_mm512_set1_epi32(int(one)))));
#else
    const Bits bits = as<Bits>(many);
    sum += as<Vec>(bits << 16) * as<float>(one << 16);
    return sum + as<Vec>(bits & 0xffff0000u) * as<float>(one & 0xffff0000u);
#endif
  }
  // Weights of `keys` keys (VECTORS vectors each) to pairs of keys, in place.
  static void weights(Vec* p, int keys) {
    for (int t = 0; t < keys; t += 2)
      for (int v = 0; v < VECTORS; ++v) {
        const Bits low = as<Bits>(p[t * VECTORS + v]) + 0x8000u;  // to the nearest
        const Bits high = as<Bits>(p[(t + 1) * VECTORS + v]) + 0x8000u;
        p[t / 2 * VECTORS + v] = as<Vec>((low >> 16) | (high & 0xffff0000u));
      }
  }
  static void store(Number* to, Vec x, size_t count) {
    const Bits bits = as<Bits>(x);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to the nearest, or even
    const Bits safe = x == x ? rounded : Bits{} + 0x7fc0u;
    const auto numbers = __builtin_convertvector(safe, Numbers);
    std::memcpy(to, &numbers, count * sizeof *to);
  }
};

// --- one call -----------------------------------------------------------------------------------

extern "C" struct AttentionCall {
  const void *q, *k, *v;
  const uint8_t* mask;  // 1 = attend, or null
  void* out;
  // Distances in numbers between batches, heads and tokens; channels lie side by side.
  int64_t q_step[3], k_step[3], v_step[3], out_step[3];
  int64_t mask_step[4];  // of batches, heads, queries, keys
  int64_t batch, heads, queries, keys, width, value_width;
  int32_t type;  // 0 float32, 1 bfloat16
  int32_t threads;
  Parallel parallel;  // or null
  float scale;
};

// Asks for rows that are read soon: they lie apart, and the machine does not see what comes next.
template <class Number>
inline void fetch(const Number* rows, int64_t step, int64_t count, int64_t width) {
  for (int64_t j = 0; j < count; ++j)
    for (int64_t i = 0; i < width; i += 64 / int64_t(sizeof(Number)))
      __builtin_prefetch(rows + j * step + i);
}

// What one thread needs: a head's keys and values, and a block of queries, in the order of use.
template <class Type>
class Worker {
  typedef typename Type::Number Number;
  typedef typename Type::Unit Unit;
  static constexpr int PAIR = Type::PAIR;

 public:
  explicit Worker(const AttentionCall& call)
      : c(call),
        channels(up(c.width, PAIR) / PAIR),
        keys(up(c.keys, TILE)),
        values(up(c.value_width, TILE)),
        k(block<Unit>(keys * channels)),
        v(block<Unit>(values * keys / PAIR)),
        zeros(block<Number>(std::max(c.width, c.value_width) + TILE)),
        q(block<Vec>(channels * VECTORS)),
        s(block<Vec>(KEYS * VECTORS)),
        o(block<Vec>(values * VECTORS)) {
    std::memset(zeros.get(), 0, (std::max(c.width, c.value_width) + TILE) * sizeof(Number));
  }

  void attend(int64_t b, int64_t h, int64_t first, int64_t last) {
    if (b != batch || h != head) pack_head(b, h);
    for (int64_t n = first; n < last; n += QUERIES) {
      const int64_t count = std::min<int64_t>(QUERIES, last - n);
      pack_queries(n, count);
      const int64_t next = n + count, more = std::min<int64_t>(QUERIES, last - next);
      if (more > 0) fetch(queries() + next * c.q_step[2], c.q_step[2], more, c.width);
      fetch(result() + n * c.out_step[2], c.out_step[2], count, c.value_width);
      if (c.mask)
        attend_block<true>(n, count);
      else
        attend_block<false>(n, count);
      write(n, count);
    }
  }

 private:
  const AttentionCall& c;
  const int64_t channels, keys, values;  // of q and k in units; rounded up
  int64_t batch = -1, head = -1;
  Block<Unit> k, v;
  Block<Number> zeros;
  Block<Vec> q, s, o;
  Vec top[VECTORS], total[VECTORS];

  const Number* queries() const {
    return static_cast<const Number*>(c.q) + batch * c.q_step[0] + head * c.q_step[1];
  }

  Number* result() const {
    return static_cast<Number*>(c.out) + batch * c.out_step[0] + head * c.out_step[1];
  }

  // Keys as [tile][channel][TILE], values as [tile of channels][key][TILE]; what is beyond is 0.
  void pack_head(int64_t b, int64_t h) {
    batch = b, head = h;
    const Number* from = static_cast<const Number*>(c.k) + b * c.k_step[0] + h * c.k_step[1];
    Unit* to = k.get();
    for (int64_t t = 0; t < keys; t += TILE) {
      const Number* row[TILE];
      for (int j = 0; j < TILE; ++j) row[j] = t + j < c.keys ? from + (t + j) * c.k_step[2] : zeros.get();
      if (t + 3 * TILE <= c.keys) fetch(from + (t + 2 * TILE) * c.k_step[2], c.k_step[2], TILE, c.width);
      int64_t i = 0;
      for (; i + PAIR <= c.width; i += PAIR, to += TILE)
#pragma GCC unroll 6
        for (int j = 0; j < TILE; ++j) to[j] = Type::pair(row[j][i], row[j][i + PAIR - 1]);
      if (i < c.width)  // an odd channel
        for (int j = 0; j < TILE; ++j) *to++ = Type::pair(row[j][i], 0);
    }
    from = static_cast<const Number*>(c.v) + b * c.v_step[0] + h * c.v_step[1];
    fetch(from, c.v_step[2], std::min<int64_t>(c.keys, KEYS), c.value_width);
    to = v.get();
    for (int64_t i = 0; i < values; i += TILE) {
      const int64_t there = std::min<int64_t>(TILE, c.value_width - i);
      for (int64_t t = 0; t < keys; t += PAIR, to += TILE) {
        const Number* one = t < c.keys ? from + t * c.v_step[2] + i : zeros.get();
        const Number* two = t + PAIR - 1 < c.keys ? one + (PAIR - 1) * c.v_step[2] : zeros.get();
        if (there == TILE)
#pragma GCC unroll 6
          for (int j = 0; j < TILE; ++j) to[j] = Type::pair(one[j], two[j]);
        else
          for (int j = 0; j < TILE; ++j) to[j] = j < there ? Type::pair(one[j], two[j]) : Unit(0);
      }
    }
  }

  void pack_queries(int64_t n, int64_t count) {
    const Number* from = queries() + n * c.q_step[2];
    for (int x = 0; x < VECTORS; ++x)
      for (int64_t i = 0; i < channels; i += LANES) {
        Vec square[LANES];
        const int64_t there = std::min<int64_t>(LANES * PAIR, c.width - i * PAIR);
        for (int j = 0; j < LANES; ++j) {
          square[j] = Vec{};
          if (x * LANES + j >= count) continue;
          const Number* at = from + (x * LANES + j) * c.q_step[2] + i * PAIR;
          std::memcpy(&square[j], at, (there == LANES * PAIR ? LANES * PAIR : there) * sizeof *at);
        }
        transpose(square);
        const int64_t rows = std::min<int64_t>(LANES, channels - i);
        for (int64_t j = 0; j < rows; ++j) q[(i + j) * VECTORS + x] = square[j];
      }
  }

  template <bool MASKED>
  void attend_block(int64_t n, int64_t count) {
    for (int x = 0; x < VECTORS; ++x) top[x] = all(LOWEST), total[x] = Vec{};
    std::memset(static_cast<void*>(o.get()), 0, values * VECTORS * sizeof(Vec));
    for (int64_t t = 0; t < keys; t += KEYS) {
      const int padded = int(std::min<int64_t>(KEYS, keys - t));
      const int real = int(std::min<int64_t>(KEYS, c.keys - t));
      for (int j = 0; j < padded; j += TILE)
        scores(k.get() + (t + j) * channels, s.get() + j * VECTORS);
      if (MASKED) hide(n, count, t, real);
      softmax<MASKED>(real, padded);
      Type::weights(s.get(), padded);
      for (int64_t i = 0; i < values; i += TILE)
        add(v.get() + (i * keys + t * TILE) / PAIR, padded / PAIR, o.get() + i * VECTORS);
    }
  }

  // Scores of TILE keys, times log2(e) / √d.
  void scores(const Unit* key, Vec* to) const {
    Vec sum[TILE][VECTORS] = {};
    const Vec* query = q.get();
    for (int64_t i = 0; i < channels; ++i, key += TILE, query += VECTORS)
#pragma GCC unroll 6
      for (int j = 0; j < TILE; ++j)
#pragma GCC unroll 4
        for (int x = 0; x < VECTORS; ++x) sum[j][x] = Type::dot(sum[j][x], query[x], key[j]);
    for (int j = 0; j < TILE; ++j)
      for (int x = 0; x < VECTORS; ++x) to[j * VECTORS + x] = sum[j][x] * c.scale;
  }

  // Scores that a mask takes out, to minus infinity.
  void hide(int64_t n, int64_t count, int64_t t, int real) {
    const uint8_t* mask = c.mask + batch * c.mask_step[0] + head * c.mask_step[1];
    float* score = reinterpret_cast<float*>(s.get());
    for (int j = 0; j < real; ++j) {
      const uint8_t* at = mask + n * c.mask_step[2] + (t + j) * c.mask_step[3];
      if (!c.mask_step[2] && *at) continue;  // every query attends to this key
      for (int64_t i = 0; i < count; ++i)
        if (!at[i * c.mask_step[2]]) score[j * QUERIES + i] = -__builtin_inff();
    }
  }

  // Scores to weights exp(score - top), with what came before shrunk to the new top.
  template <bool MASKED>
  void softmax(int real, int padded) {
    for (int x = 0; x < VECTORS; ++x) {
      Vec* column = s.get() + x;
      Vec high = top[x];
      for (int j = 0; j < real; ++j) high = larger(column[j * VECTORS], high);
      if (any(as<Bits>(high > top[x] + SLACK))) {
        const Vec shrink = exp2<Type::EXACT>(top[x] - high);
        total[x] *= shrink;
        for (int64_t i = 0; i < values; ++i) o[i * VECTORS + x] *= shrink;
        top[x] = high;
      }
      Vec sum{};
      for (int j = 0; j < real; ++j) {
        const Vec score = column[j * VECTORS];
        Vec weight = exp2<Type::EXACT>(score - top[x]);
        if (MASKED) weight = score < LOWEST ? Vec{} : weight;
        sum += weight;
        column[j * VECTORS] = weight;
      }
      total[x] += sum;
      for (int j = real; j < padded; ++j) column[j * VECTORS] = Vec{};
    }
  }

  // The weighted sum of TILE channels of v over a block of keys, added to o.
  void add(const Unit* value, int units, Vec* to) const {
    Vec sum[TILE][VECTORS];
    for (int j = 0; j < TILE; ++j)
      for (int x = 0; x < VECTORS; ++x) sum[j][x] = to[j * VECTORS + x];
    const Vec* weight = s.get();
    for (int t = 0; t < units; ++t, value += TILE, weight += VECTORS)
#pragma GCC unroll 6
      for (int j = 0; j < TILE; ++j)
#pragma GCC unroll 4
        for (int x = 0; x < VECTORS; ++x) sum[j][x] = Type::dot(sum[j][x], weight[x], value[j]);
    for (int j = 0; j < TILE; ++j)
      for (int x = 0; x < VECTORS; ++x) to[j * VECTORS + x] = sum[j][x];
  }

  void write(int64_t n, int64_t count) {
    for (int x = 0; x < VECTORS; ++x) {  // a query that may attend nowhere gets zeros
      const Vec share = 1.f / (total[x] == 0.f ? all(1.f) : total[x]);
      for (int64_t i = 0; i < c.value_width; ++i) o[i * VECTORS + x] *= share;
    }
    Number* to = result() + n * c.out_step[2];
    for (int x = 0; x < VECTORS; ++x)
      for (int64_t i = 0; i < c.value_width; i += LANES) {
        Vec square[LANES];
        for (int j = 0; j < LANES; ++j)
          square[j] = i + j < c.value_width ? o[(i + j) * VECTORS + x] : Vec{};
        transpose(square);
        const int64_t there = std::min<int64_t>(LANES, c.value_width - i);
        for (int j = 0; j < LANES && x * LANES + j < count; ++j) {
          Number* at = to + (x * LANES + j) * c.out_step[2] + i;
          if (there == LANES)
            Type::store(at, square[j], LANES);
          else
            Type::store(at, square[j], there);
        }
      }
  }
};

// Work that threads take piece by piece: a run of queries of one head.
struct Shared {
  const AttentionCall& call;
  int64_t run, runs;  // queries in a piece, pieces in a head
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
};

template <class Type>
void work(void* data) {
  Shared& shared = *static_cast<Shared*>(data);
  const AttentionCall& call = shared.call;
  try {
    const int64_t pieces = call.batch * call.heads * shared.runs;
    int64_t piece = shared.next++;
    if (piece >= pieces) return;
    Worker<Type> worker(call);
    for (; piece < pieces; piece = shared.next++) {
      const int64_t head = piece / shared.runs, first = piece % shared.runs * shared.run;
      worker.attend(head / call.heads, head % call.heads, first,
                    std::min(first + shared.run, call.queries));
    }
  } catch (const std::bad_alloc&) {
    shared.failed = true;
  }
}

}  // namespace

// 0, or 1 where memory did not suffice.
extern "C" __attribute__((visibility("default"))) int sdcore_attention(const AttentionCall* call) {
  const int64_t heads = call->batch * call->heads;
  if (!heads || !call->queries || !call->value_width) return 0;
  const int threads = std::max(call->threads, 1);
  // Four pieces a thread even out what else the machine does; packing a head for each must pay.
  const int64_t wanted = std::max<int64_t>(1, up(4 * threads, heads) / heads);
  const int64_t run = up(std::max<int64_t>(up(call->queries, wanted) / wanted, 256), QUERIES);
  Shared shared{*call, run, up(call->queries, run) / run};
  void (*const worker)(void*) = call->type ? work<BFloat16> : work<Float32>;
  in_threads(call->parallel, std::min<int64_t>(threads, heads * shared.runs), worker, &shared);
  return shared.failed;
}

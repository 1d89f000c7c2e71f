// A convolution of 3 x 3 with a margin of one, in float32 on a CPU, by Winograd's minimal filtering.
//
// The map is cut into tiles of 4 x 4 results, each of which reads 6 x 6 numbers. Inputs and weights
// are turned into values of polynomials at six points a side; there a convolution is a product, so
// that 36 multiplications do what takes 144: F(4 x 4, 3 x 3) of Lavin and Gray 2016
// (arXiv:1509.09308), at the points 0, 1, -1, 2, -2 and infinity. The products of all channels are
// 36 products of matrices.
//
// Lanes are tiles, or outs where weights are turned. Nothing is kept from call to call: weights are
// turned block by block, in the first caches, which costs a fifth of the products. Each number is
// summed over the channels in their order, so it depends neither on the batch nor on the threads.

#include <atomic>

#include "vectors.h"

namespace {

#if defined(__AVX512F__) || !defined(__AVX2__)
constexpr int SUMS = 16, MOST_VECTORS = 4;  // of 32 registers
#else
constexpr int SUMS = 8, MOST_VECTORS = 2;  // of 16
#endif
constexpr int TILE = 4, SIDE = TILE + 2, POINTS = SIDE * SIDE;
constexpr int DEPTH = 32, OUTS = 32;  // channels and outs in a block
constexpr int TAPS = 9;
// Steps from point to point, a cache line longer than what lies there: steps of a power of two would
// meet in one place of a cache.
constexpr int WEIGHTS_STEP = DEPTH * OUTS + 16;
extern "C" struct ConvolutionCall {
  const float* x;       // (batch, channels, height, width)
  const float* weight;  // (outs, channels, 3, 3)
  const float* bias;    // (outs), or null
  float* out;           // (batch, outs, height, width)
  int64_t batch, channels, outs, height, width;
  int32_t threads;
  Parallel parallel;  // or null
};

// --- vectors ------------------------------------------------------------------------------------

template <int FIRST, int STEP, size_t... I>
inline Vec pick(Vec a, Vec b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (FIRST + STEP * int(I))...);
}
template <int FIRST, size_t... I>
inline Vec zip(Vec a, Vec b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (FIRST + int(I / 2) + (I % 2 ? LANES : 0))...);
}
template <size_t... I>
inline Vec shifted(Vec a, Vec before, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, before, (I ? int(I) - 1 : LANES)...);
}
constexpr std::make_index_sequence<LANES> lanes;

inline Vec even(Vec a, Vec b) { return pick<0, 2>(a, b, lanes); }
inline Vec odd(Vec a, Vec b) { return pick<1, 2>(a, b, lanes); }
inline Vec after(Vec a, float next) { return pick<1, 1>(a, all(next), lanes); }
inline Vec before(Vec a, float last) { return shifted(a, all(last), lanes); }

// Numbers 0 to 4 LANES to those of remainder 0, 1, 2, 3 by four, and back.
inline void part(const float* from, Vec (&to)[TILE]) {
  const Vec a = load(from), b = load(from + LANES);
  const Vec c = load(from + 2 * LANES), d = load(from + 3 * LANES);
  const Vec e0 = even(a, b), e1 = even(c, d), o0 = odd(a, b), o1 = odd(c, d);
  to[0] = even(e0, e1), to[1] = even(o0, o1), to[2] = odd(e0, e1), to[3] = odd(o0, o1);
}
inline void join(const Vec (&from)[TILE], float* to) {
  const Vec e0 = zip<0>(from[0], from[2], lanes), e1 = zip<LANES / 2>(from[0], from[2], lanes);
  const Vec o0 = zip<0>(from[1], from[3], lanes), o1 = zip<LANES / 2>(from[1], from[3], lanes);
  store(to, zip<0>(e0, o0, lanes)), store(to + LANES, zip<LANES / 2>(e0, o0, lanes));
  store(to + 2 * LANES, zip<0>(e1, o1, lanes));
  store(to + 3 * LANES, zip<LANES / 2>(e1, o1, lanes));
}

// --- the three transforms, along one side; `step` apart -----------------------------------------

inline void turn_inputs(const Vec* d, int64_t step, Vec* to, int64_t to_step) {
  const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step];
  const Vec d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Vec a = d4 - 4.f * d2, b = d3 - 4.f * d1, c = d4 - d2, e = 2.f * (d3 - d1);
  to[0] = 4.f * d0 - 5.f * d2 + d4;
  to[to_step] = a + b, to[2 * to_step] = a - b;
  to[3 * to_step] = c + e, to[4 * to_step] = c - e;
  to[5 * to_step] = 4.f * d1 - 5.f * d3 + d5;
}

inline void turn_weights(Vec g0, Vec g1, Vec g2, Vec* to, int64_t step) {
  const Vec a = (g0 + g2) * (-1.f / 6), b = g1 * (1.f / 6);
  const Vec c = g0 * (1.f / 24) + g2 * (1.f / 6), d = g1 * (1.f / 12);
  to[0] = 0.25f * g0;
  to[step] = a - b, to[2 * step] = a + b;
  to[3 * step] = c + d, to[4 * step] = c - d;
  to[5 * step] = g2;
}

inline void turn_back(const Vec* m, int64_t step, Vec* to, int64_t to_step) {
  const Vec a = m[step] + m[2 * step], b = m[step] - m[2 * step];
  const Vec c = m[3 * step] + m[4 * step], d = m[3 * step] - m[4 * step];
  to[0] = m[0] + a + c;
  to[to_step] = b + 2.f * d;
  to[2 * to_step] = a + 4.f * c;
  to[3 * to_step] = b + 8.f * d + m[5 * step];
}

// --- the product: sums (ROWS, VECTORS) of weights (channels, ROWS of OUTS) times inputs -----------
template <int ROWS, int VECTORS>
inline void add(const Vec* in, const float* weight, Vec* to, int64_t channels, bool more) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int j = 0; j < ROWS; ++j)
#pragma GCC unroll 4
    for (int x = 0; x < VECTORS; ++x) sum[j][x] = more ? to[j * VECTORS + x] : Vec{};
  for (int64_t k = 0; k < channels; ++k, in += VECTORS, weight += OUTS)
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; ++j)
#pragma GCC unroll 4
      for (int x = 0; x < VECTORS; ++x) sum[j][x] += in[x] * weight[j];
#pragma GCC unroll 16
  for (int j = 0; j < ROWS; ++j)
#pragma GCC unroll 4
    for (int x = 0; x < VECTORS; ++x) to[j * VECTORS + x] = sum[j][x];
}

// --- one call -----------------------------------------------------------------------------------

// Work on groups of VECTORS x LANES tiles. First the inputs of some groups are turned, then they
// meet the weights, block of outs by block.
template <int VECTORS>
class Convolution {
  static constexpr int GROUP = VECTORS * LANES, ROWS = SUMS / VECTORS;
  // Vectors from point to point.
  static constexpr int INPUTS_STEP = DEPTH * VECTORS + 1, SUMS_STEP = OUTS * VECTORS + 1;
  static constexpr int64_t PANEL = POINTS * INPUTS_STEP;  // inputs of a group, a block of channels
  static constexpr int64_t ROOM = 2 << 20;  // bytes of inputs a thread, about a second cache

 public:
  Convolution(const ConvolutionCall& call, int64_t tiles)
      : c(call),
        across(up(c.width, TILE) / TILE),
        tiles(tiles),
        groups(up(tiles, GROUP) / GROUP),
        depths(up(c.channels, DEPTH) / DEPTH),
        blocks(up(c.outs, OUTS) / OUTS) {}

  bool run() {
    const int64_t threads = std::max(c.threads, 1);
    const int64_t fit = ROOM * threads / int64_t(depths * PANEL * sizeof(Vec));
    const int64_t most = std::min(groups, std::max(threads, fit));
    inputs = block<Vec>(most * depths * PANEL);
    for (first = 0; first < groups; first += most) {
      count = std::min(most, groups - first);
      pass(count * depths, threads, &Convolution::turn_inputs_of_all);
      pass(count * blocks, threads, &Convolution::multiply_all);
    }
    return !failed;
  }

 private:
  const ConvolutionCall& c;
  const int64_t across, tiles, groups;  // tiles in a row, and in all
  const int64_t depths, blocks;         // of channels, and of outs
  int64_t first = 0, count = 0;         // groups of this pass
  Block<Vec> inputs;
  std::atomic<int64_t> next{0};  // the piece of work that is taken next
  std::atomic<bool> failed{false};
  void (Convolution::*step)() = nullptr;

  void pass(int64_t pieces, int64_t threads, void (Convolution::*what)()) {
    step = what, next = 0;
    in_threads(c.parallel, std::min(threads, pieces), [](void* self) {
      Convolution* const mine = static_cast<Convolution*>(self);
      (mine->*mine->step)();
    }, this);
  }

  void turn_inputs_of_all() {
    for (int64_t i; (i = next++) < count * depths;) turn(first + i / depths, i % depths);
  }

  void multiply_all() {
    try {
      multiply();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  }

  Vec* turned(int64_t group, int64_t depth) const {
    return inputs.get() + ((group - first) * depths + depth) * PANEL;
  }
  int64_t depth_of(int64_t block) const { return std::min<int64_t>(DEPTH, c.channels - block * DEPTH); }

  // A run of tiles of a group that lie side by side in one row.
  struct Run {
    int64_t image, y, x, tiles;  // y and x of its first result
  };
  Run run_at(int64_t tile, int64_t end) const {
    const int64_t row = tile / across, x = tile % across, rows = up(c.height, TILE) / TILE;
    return {row / rows, row % rows * TILE, x * TILE, std::min(across - x, end - tile)};
  }

  // --- inputs: [point][channel][tile] for each group and block of channels

  void turn(int64_t group, int64_t depth) {
    constexpr int STEP = GROUP + LANES;  // a run may end in the middle of a vector
    alignas(64) float read[POINTS * STEP] = {};
    Vec* const to = turned(group, depth);
    const int64_t begin = group * GROUP, end = std::min(begin + GROUP, tiles);
    for (int64_t k = 0; k < depth_of(depth); ++k) {
      for (int64_t t = begin; t < end;) {
        const Run run = run_at(t, end);
        const int64_t plane = run.image * c.channels + depth * DEPTH + k;
        for (int i = 0; i < SIDE; ++i) {
          float* const at = read + i * SIDE * STEP + (t - begin);
          const int64_t y = run.y - 1 + i;
          if (y < 0 || y >= c.height)
            clear(at, STEP, run.tiles);
          else
            read_row(c.x + (plane * c.height + y) * c.width, run, at, STEP);
        }
        t += run.tiles;
      }
      for (int x = 0; x < VECTORS; ++x) {
        Vec here[POINTS], half[POINTS];
        for (int i = 0; i < POINTS; ++i) here[i] = load(read + i * STEP + x * LANES);
        for (int i = 0; i < SIDE; ++i) turn_inputs(here + i * SIDE, 1, half + i * SIDE, 1);
        for (int j = 0; j < SIDE; ++j)
          turn_inputs(half + j, SIDE, to + j * INPUTS_STEP + k * VECTORS + x, SIDE * INPUTS_STEP);
      }
    }
  }

  static void clear(float* to, int step, int64_t tiles) {
    for (int j = 0; j < SIDE; ++j)
      for (int64_t q = 0; q < tiles; q += LANES) store(to + j * step + q, Vec{});
  }

  // The six numbers that each tile of a run reads in one row; beyond the map there are zeros.
  void read_row(const float* row, const Run& run, float* to, int step) const {
    alignas(64) float line[TILE * LANES];
    for (int64_t q = 0; q < run.tiles; q += LANES) {
      const int64_t x = run.x + q * TILE, left = c.width - x;
      const float* from = row + x;
      if (left < TILE * LANES) {
        for (int j = 0; j < TILE; ++j) {
          const int64_t there = left - j * LANES;
          Vec some{};
          if (there >= LANES)
            some = load(from + j * LANES);
          else if (there > 0)
            std::memcpy(&some, from + j * LANES, size_t(there) * sizeof(float));
          store(line + j * LANES, some);
        }
        from = line;
      }
      Vec four[TILE];
      part(from, four);
      store(to + q, before(four[3], x ? row[x - 1] : 0.f));
      for (int j = 0; j < TILE; ++j) store(to + (1 + j) * step + q, four[j]);
      store(to + 5 * step + q, after(four[0], left > TILE * LANES ? row[x + TILE * LANES] : 0.f));
    }
  }

  // --- weights: [point][channel][out] for a block of each

  // Weights of a block of outs and one of channels: [channel and tap][out], 0 beyond the last out.
  void read_weights(int64_t out, int64_t depth, float* to) const {
    const int64_t numbers = depth_of(depth) * TAPS;
    for (int o = 0; o < OUTS; o += LANES)
      for (int64_t i = 0; i < numbers; i += LANES) {
        Vec square[LANES];
        const int64_t there = std::min<int64_t>(LANES, numbers - i);
        for (int j = 0; j < LANES; ++j) {
          square[j] = Vec{};
          if (out + o + j >= c.outs) continue;
          const float* from = c.weight + ((out + o + j) * c.channels + depth * DEPTH) * TAPS + i;
          if (there == LANES)
            square[j] = load(from);
          else
            std::memcpy(&square[j], from, size_t(there) * sizeof(float));
        }
        transpose(square);
        for (int j = 0; j < LANES; ++j) store(to + (i + j) * OUTS + o, square[j]);
      }
  }
  static constexpr int WEIGHTS = (DEPTH * TAPS + LANES) * OUTS;  // numbers of such a block

  // Asks for a share of the weights that are read next.
  void fetch_weights(int64_t out, int64_t depth, int share, int shares) const {
    constexpr int LINES = DEPTH * TAPS / 16 + 1;  // of 64 bytes, in a row
    if (depth >= depths) return;
    const int each = (LINES * OUTS + shares - 1) / shares;
    for (int i = share * each; i < std::min((share + 1) * each, LINES * OUTS); ++i) {
      const int64_t row = out + i / LINES;
      const float* const at = c.weight + (row * c.channels + depth * DEPTH) * TAPS;
      if (row < c.outs) __builtin_prefetch(at + i % LINES * 16, 0, 2);
    }
  }

  void turn_block(int64_t out, int64_t depth, float* read, float* to) const {
    read_weights(out, depth, read);
    for (int64_t k = 0; k < depth_of(depth); ++k)
      for (int o = 0; o < OUTS; o += LANES) {
        Vec g[TAPS], half[SIDE * 3];
        for (int i = 0; i < TAPS; ++i) g[i] = load(read + (k * TAPS + i) * OUTS + o);
        for (int j = 0; j < 3; ++j) turn_weights(g[j], g[3 + j], g[6 + j], half + j, 3);
        for (int i = 0; i < SIDE; ++i) {
          Vec row[SIDE];
          turn_weights(half[i * 3], half[i * 3 + 1], half[i * 3 + 2], row, 1);
          for (int j = 0; j < SIDE; ++j)
            store(to + (i * SIDE + j) * WEIGHTS_STEP + k * OUTS + o, row[j]);
        }
      }
  }

  // --- products

  void multiply() {
    constexpr int SHARES = POINTS * (OUTS / ROWS);
    const Block<float> read = block<float>(WEIGHTS), weights = block<float>(POINTS * WEIGHTS_STEP);
    const Block<Vec> sums = block<Vec>(POINTS * SUMS_STEP);
    for (int64_t i; (i = next++) < count * blocks;) {
      const int64_t group = first + i / blocks, out = i % blocks * OUTS;
      for (int64_t depth = 0; depth < depths; ++depth) {
        turn_block(out, depth, read.get(), weights.get());
        const Vec* const from = turned(group, depth);
        for (int p = 0; p < POINTS; ++p)
          for (int o = 0; o < OUTS; o += ROWS) {
            if (p + 1 < POINTS) fetch_inputs(from + (p + 1) * INPUTS_STEP, o);
            fetch_weights(out, depth + 1, p * (OUTS / ROWS) + o / ROWS, SHARES);
            add<ROWS, VECTORS>(from + p * INPUTS_STEP, weights.get() + p * WEIGHTS_STEP + o,
                               sums.get() + p * SUMS_STEP + o * VECTORS, depth_of(depth), depth > 0);
          }
      }
      write(group, out, sums.get());
    }
  }

  // Asks for the share of the next point's inputs that falls to one of its ROWS outs.
  static void fetch_inputs(const Vec* inputs, int out) {
    constexpr int LINES = DEPTH * GROUP / 16, EACH = (LINES * ROWS + OUTS - 1) / OUTS;
    const float* const from = reinterpret_cast<const float*>(inputs) + out / ROWS * EACH * 16;
    for (int i = 0; i < EACH; ++i) __builtin_prefetch(from + i * 16);
  }

  // --- results

  void write(int64_t group, int64_t out, const Vec* sums) const {
    alignas(64) float results[TILE * TILE * GROUP + LANES] = {};
    const int64_t begin = group * GROUP, end = std::min(begin + GROUP, tiles);
    for (int o = 0; o < OUTS && out + o < c.outs; ++o) {
      const float bias = c.bias ? c.bias[out + o] : 0.f;
      for (int x = 0; x < VECTORS; ++x) {
        Vec half[TILE * SIDE];
        for (int j = 0; j < SIDE; ++j)
          turn_back(sums + j * SUMS_STEP + o * VECTORS + x, SIDE * SUMS_STEP, half + j, SIDE);
        for (int i = 0; i < TILE; ++i) {
          Vec row[TILE];
          turn_back(half + i * SIDE, 1, row, 1);
          for (int j = 0; j < TILE; ++j)
            store(results + (i * TILE + j) * GROUP + x * LANES, row[j] + bias);
        }
      }
      for (int64_t t = begin; t < end;) {
        const Run run = run_at(t, end);
        float* const plane = c.out + (run.image * c.outs + out + o) * c.height * c.width;
        for (int i = 0; i < TILE && run.y + i < c.height; ++i)
          write_row(results + i * TILE * GROUP + (t - begin), run,
                    plane + (run.y + i) * c.width);
        t += run.tiles;
      }
    }
  }

  void write_row(const float* from, const Run& run, float* row) const {
    alignas(64) float line[TILE * LANES];
    for (int64_t q = 0; q < run.tiles; q += LANES) {
      const int64_t x = run.x + q * TILE;
      const int64_t left = std::min((run.tiles - q) * TILE, c.width - x);
      Vec four[TILE];
      for (int j = 0; j < TILE; ++j) four[j] = load(from + j * GROUP + q);
      if (left >= TILE * LANES) {
        join(four, row + x);
      } else {
        join(four, line);
        std::memcpy(row + x, line, size_t(left) * sizeof(float));
      }
    }
  }
};

}  // namespace

// 0, or 1 where memory did not suffice.
extern "C" __attribute__((visibility("default"))) int sdcore_convolution(const ConvolutionCall* call) {
  const int64_t tiles = call->batch * (up(call->height, TILE) / TILE) * (up(call->width, TILE) / TILE);
  if (!tiles || !call->outs) return 0;
  try {
    if (tiles <= LANES) return !Convolution<1>(*call, tiles).run();
    if (tiles <= 2 * LANES || MOST_VECTORS == 2) return !Convolution<2>(*call, tiles).run();
    return !Convolution<MOST_VECTORS>(*call, tiles).run();
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// What the kernels have in common: vectors, memory for blocks, and threads.
//
// The vectors are those of the compiler (GCC, Clang): one source for AVX-512, AVX2 and NEON.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));

inline Vec all(float x) { return Vec{} + x; }

// LANES numbers that lie anywhere.
inline Vec load(const float* from) {
  Vec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

// Of two rows that are STEP apart in a square of LANES x LANES: the blocks beside the diagonal
// change places.
template <int STEP, size_t... I>
inline void swap_blocks(Vec& a, Vec& b, std::index_sequence<I...>) {
  const Vec first = __builtin_shufflevector(a, b, (I & STEP ? LANES + I - STEP : I)...);
  b = __builtin_shufflevector(a, b, (I & STEP ? LANES + I : I + STEP)...);
  a = first;
}

template <int STEP = 1>
inline void transpose(Vec (&rows)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i)
    if (!(i & STEP)) swap_blocks<STEP>(rows[i], rows[i + STEP], std::make_index_sequence<LANES>());
  if constexpr (STEP * 2 < LANES) transpose<STEP * 2>(rows);
}

inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};
template <class T>
using Block = std::unique_ptr<T[], Free>;
template <class T>
Block<T> block(int64_t size) {
  const size_t bytes = size_t(up(std::max<int64_t>(size, 1) * int64_t(sizeof(T)), 64));
  return Block<T>(static_cast<T*>(::operator new(bytes, std::align_val_t(64))));
}

// Runs work(data) in so many threads: GOMP_parallel of the OpenMP that torch uses.
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

inline void in_threads(Parallel parallel, int64_t threads, void (*work)(void*), void* data) {
  if (threads <= 1) {
    work(data);
  } else if (parallel) {
    parallel(work, data, unsigned(threads), 0);
  } else {
    std::vector<std::thread> others;
    try {
      for (int64_t i = 1; i < threads; ++i) others.emplace_back(work, data);
    } catch (...) {  // fewer threads do the same work
    }
    work(data);
    for (std::thread& other : others) other.join();
  }
}

}  // namespace

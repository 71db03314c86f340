// AVX2 with FMA and F16C: two registers per vector. The interface is defined in isa/scalar.h.
#pragma once

#include <immintrin.h>

#include "isa/compiler.h"

#define DEEPMNN_NS avx2

namespace deepmnn::avx2 {

constexpr int kTileBlocks = 1;
constexpr int kTileRows = 4;
constexpr int kStreamRows = 4;
constexpr int kSplitSums = 1;
constexpr int kPanelBlocks = 1;
constexpr int kPanelTileRows = 4;
constexpr int kKeptTileRows = 4;
constexpr int kPanelStep = 8;
constexpr bool kStoredPanels = false;
constexpr bool kFusedFma = true;
constexpr int kVectorRegisters = 8;

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct U8x64 {
  __m256i lo, hi;
};

// All ones in the first n of lanes 0..7 (n may be below 0 or above 8).
DEEPMNN_INLINE __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), lane);
}

DEEPMNN_INLINE F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
DEEPMNN_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
DEEPMNN_INLINE F32x16 load(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_lanes(n)),
          n > 8 ? _mm256_maskload_ps(p + 8, first_lanes(n - 8)) : _mm256_setzero_ps()};
}
DEEPMNN_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
DEEPMNN_INLINE void store(float* p, F32x16 a, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
DEEPMNN_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
DEEPMNN_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
DEEPMNN_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
DEEPMNN_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
DEEPMNN_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
DEEPMNN_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
DEEPMNN_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
DEEPMNN_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
DEEPMNN_INLINE float sum(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
DEEPMNN_INLINE float max_lane(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
// Per 128-bit lane the sums of four vectors, whose upper half was added to the lower one.
DEEPMNN_INLINE __m256 fold_four(const F32x16* v) {
  const __m256 ab = _mm256_hadd_ps(_mm256_add_ps(v[0].lo, v[0].hi), _mm256_add_ps(v[1].lo, v[1].hi));
  const __m256 cd = _mm256_hadd_ps(_mm256_add_ps(v[2].lo, v[2].hi), _mm256_add_ps(v[3].lo, v[3].hi));
  return _mm256_hadd_ps(ab, cd);
}
DEEPMNN_INLINE __m256 fold_eight(const F32x16* v) {
  const __m256 a = fold_four(v), b = fold_four(v + 4);
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
DEEPMNN_INLINE F32x16 sums(const F32x16 (&v)[16]) { return {fold_eight(v), fold_eight(v + 8)}; }

// Even (mask 0x88) or odd (0xdd) elements of 16 consecutive floats.
template <int kMask>
DEEPMNN_INLINE __m256 every_second(F32x16 a) {
  const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a.lo, a.hi, kMask));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
DEEPMNN_INLINE void deinterleave(F32x16 a, F32x16 b, F32x16& first, F32x16& second) {
  first = {every_second<0x88>(a), every_second<0x88>(b)};
  second = {every_second<0xdd>(a), every_second<0xdd>(b)};
}
DEEPMNN_INLINE F32x16 zip(__m256 first, __m256 second) {
  const __m256 low = _mm256_unpacklo_ps(first, second), high = _mm256_unpackhi_ps(first, second);
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
DEEPMNN_INLINE void interleave(F32x16 first, F32x16 second, F32x16& a, F32x16& b) {
  a = zip(first.lo, second.lo);
  b = zip(first.hi, second.hi);
}
// The 8 × 8 numbers that are the low (or high) halves of rows[0..7].
// Lane i plus the lane beside it, or where i has the bit kApart that lane less this one.
template <int kApart>
DEEPMNN_INLINE __m256 butterfly_half(__m256 a) {
  const __m256 other = kApart == 1   ? _mm256_permute_ps(a, 0xb1)
                       : kApart == 2 ? _mm256_permute_ps(a, 0x4e)
                                     : _mm256_permute2f128_ps(a, a, 1);
  const auto sign = [](int lane) { return lane & kApart ? -1.0f : 1.0f; };
  const __m256 signs = _mm256_setr_ps(sign(0), sign(1), sign(2), sign(3), sign(4), sign(5), sign(6), sign(7));
  return _mm256_fmadd_ps(a, signs, other);  // a product with 1 or -1 is exact
}
template <int kApart>
DEEPMNN_INLINE F32x16 butterfly(F32x16 a) {
  if constexpr (kApart == 8) return {_mm256_add_ps(a.lo, a.hi), _mm256_sub_ps(a.lo, a.hi)};
  return {butterfly_half<kApart>(a.lo), butterfly_half<kApart>(a.hi)};
}
DEEPMNN_INLINE void transpose_eight(const F32x16* rows, bool high, __m256 (&columns)[8]) {
  __m256 fours[8];  // 4 i + j: per 128-bit lane l, column 4 l + j of rows 4 i and the next three
  DEEPMNN_UNROLL
  for (int i = 0; i < 8; i += 4) {
    const auto row = [&](int r) { return high ? rows[i + r].hi : rows[i + r].lo; };
    const __m256 a = _mm256_unpacklo_ps(row(0), row(1)), b = _mm256_unpackhi_ps(row(0), row(1));
    const __m256 c = _mm256_unpacklo_ps(row(2), row(3)), d = _mm256_unpackhi_ps(row(2), row(3));
    fours[i] = _mm256_shuffle_ps(a, c, 0x44);
    fours[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
    fours[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
    fours[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
  DEEPMNN_UNROLL
  for (int j = 0; j < 4; ++j) {
    columns[j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x20);
    columns[4 + j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x31);
  }
}
DEEPMNN_INLINE void transpose(F32x16 (&rows)[16]) {
  __m256 quarters[4][8];  // rows' and columns' halves
  transpose_eight(rows, false, quarters[0]);
  transpose_eight(rows, true, quarters[1]);
  transpose_eight(rows + 8, false, quarters[2]);
  transpose_eight(rows + 8, true, quarters[3]);
  DEEPMNN_UNROLL
  for (int i = 0; i < 8; ++i) {
    rows[i] = {quarters[0][i], quarters[2][i]};
    rows[8 + i] = {quarters[1][i], quarters[3][i]};
  }
}

DEEPMNN_INLINE I32x16 splat_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
DEEPMNN_INLINE I32x16 load_i32(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
DEEPMNN_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
DEEPMNN_INLINE I32x16 operator-(I32x16 a, I32x16 b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
DEEPMNN_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
DEEPMNN_INLINE I32x16 shift_left(I32x16 a, int n) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
DEEPMNN_INLINE I32x16 shift_right(I32x16 a, int n) { return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
DEEPMNN_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
DEEPMNN_INLINE I32x16 select_greater(I32x16 a, I32x16 b, I32x16 x, I32x16 y) {
  return {_mm256_blendv_epi8(y.lo, x.lo, _mm256_cmpgt_epi32(a.lo, b.lo)),
          _mm256_blendv_epi8(y.hi, x.hi, _mm256_cmpgt_epi32(a.hi, b.hi))};
}
DEEPMNN_INLINE int32_t sum(I32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
DEEPMNN_INLINE int32_t max_lane(I32x16 a) {
  const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

DEEPMNN_INLINE I32x16 bits(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
DEEPMNN_INLINE F32x16 from_bits(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
DEEPMNN_INLINE F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
DEEPMNN_INLINE I32x16 to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }

// The low half of every lane, in order.
DEEPMNN_INLINE __m256i narrow16(I32x16 a) {
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}
DEEPMNN_INLINE void store_u16(uint16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow16(a));
}
DEEPMNN_INLINE void store_i8(int8_t* p, I32x16 a) {
  const __m256i bytes = _mm256_and_si256(narrow16(a), _mm256_set1_epi16(0xff));
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
DEEPMNN_INLINE __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
DEEPMNN_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {widen_bf16(_mm_loadu_si128(q)), widen_bf16(_mm_loadu_si128(q + 1))};
}
DEEPMNN_INLINE F32x16 load_bf16(const uint16_t* p, int64_t n) {
  uint16_t all[16] = {};
  __builtin_memcpy(all, p, static_cast<uint64_t>(n) * sizeof(uint16_t));
  return load_bf16(all);
}
DEEPMNN_INLINE I32x16 widen_i8(const int8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(all), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all))};
}
DEEPMNN_INLINE F32x16 load_f16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
DEEPMNN_INLINE void store_f16(void* p, F32x16 a) {
  __m128i* q = static_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}

DEEPMNN_INLINE U8x64 bytes(I32x16 a) { return {a.lo, a.hi}; }
DEEPMNN_INLINE U8x64 load_u8(const uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
DEEPMNN_INLINE void store_u8(uint8_t* p, U8x64 a) {
  __m256i* q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, a.lo);
  _mm256_storeu_si256(q + 1, a.hi);
}
DEEPMNN_INLINE U8x64 operator|(U8x64 a, U8x64 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int kByte>
DEEPMNN_INLINE I32x16 every_fourth(U8x64 a) {
  constexpr int kZeros = -256;  // of these three bytes
  const __m128i order = _mm_setr_epi32(kZeros + kByte, kZeros + kByte + 4, kZeros + kByte + 8, kZeros + kByte + 12);
  const __m256i twice = _mm256_broadcastsi128_si256(order);
  return {_mm256_shuffle_epi8(a.lo, twice), _mm256_shuffle_epi8(a.hi, twice)};
}
template <int kCount, int kTo>
DEEPMNN_INLINE __m256i move_bits_half(__m256i a, int from) {
  const __m256i there = from == kTo  ? a
                        : from < kTo ? _mm256_slli_epi16(a, kTo - from)
                                     : _mm256_srli_epi16(a, from - kTo);
  return _mm256_and_si256(there, _mm256_set1_epi8(((1 << kCount) - 1) << kTo));
}
template <int kCount, int kTo>
DEEPMNN_INLINE U8x64 move_bits(U8x64 a, int from) {
  return {move_bits_half<kCount, kTo>(a.lo, from), move_bits_half<kCount, kTo>(a.hi, from)};
}
DEEPMNN_INLINE U8x64 lookup(const uint8_t* table, U8x64 codes) {
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(twice, codes.lo), _mm256_shuffle_epi8(twice, codes.hi)};
}
DEEPMNN_INLINE __m256i turn_half(__m256i a, __m256i plane, __m256i bit) {
  return _mm256_xor_si256(a, _mm256_cmpeq_epi8(_mm256_and_si256(plane, bit), bit));
}
DEEPMNN_INLINE U8x64 turn_where(U8x64 a, U8x64 plane, int bit) {
  const __m256i wanted = _mm256_set1_epi8(static_cast<char>(1 << bit));
  return {turn_half(a.lo, plane.lo, wanted), turn_half(a.hi, plane.hi, wanted)};
}
DEEPMNN_INLINE __m256i broadcast4(const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, sizeof(four));
  return _mm256_set1_epi32(four);
}
DEEPMNN_INLINE __m256i add_pairs(__m256i acc, __m256i pairs) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// maddubs saturates at int16: with full u8 weights two products may not fit. So the weight becomes signed and its sign
// moves to the activation: |w - 128| <= 128 times 127, twice, is 32512.
DEEPMNN_INLINE __m256i signed_pairs(__m256i w, __m256i a) {
  const __m256i code = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  return _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(a, code));
}
template <int kBits>
constexpr int kDotOffset = kBits == 8 ? 0 : 1 << (kBits - 1);
// Sums of pairs of products stay in int16 as long as they fit: 8 of 2 * 15 * 127, 4 of 2 * 31 * 127, 2 of 2 * 63 * 127.
template <int kBits>
struct DotRun {
  static constexpr int kMost = kBits <= 4 ? 8 : kBits == 5 ? 4 : kBits == 6 ? 2 : 1;
  I32x16 total;
  __m256i lo, hi;
  DEEPMNN_INLINE void start(I32x16 acc) {
    total = acc;
    lo = hi = _mm256_setzero_si256();
  }
  DEEPMNN_INLINE void add(U8x64 codes, const int8_t* a) {
    const __m256i four = broadcast4(a);
    if constexpr (kBits == 8) {
      total = {add_pairs(total.lo, signed_pairs(codes.lo, four)), add_pairs(total.hi, signed_pairs(codes.hi, four))};
    } else {
      lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(codes.lo, four));
      hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(codes.hi, four));
    }
  }
  DEEPMNN_INLINE I32x16 sum() const {
    if constexpr (kBits == 8) return total;
    return {add_pairs(total.lo, lo), add_pairs(total.hi, hi)};
  }
};
DEEPMNN_INLINE int32_t sum_of_256(const int8_t* p) {
  __m256i total = _mm256_setzero_si256();
  DEEPMNN_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * i));
    total = add_pairs(total, _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes));
  }
  return sum(I32x16{total, _mm256_setzero_si256()});
}

// Two products of codes are at most 2 * 127 * 127: they fit int16.
constexpr bool kKeyBiased = false;
DEEPMNN_INLINE U8x64 key_codes(I32x16 a) { return {a.lo, a.hi}; }
DEEPMNN_INLINE __m256i key_pairs(__m256i keys, __m256i query) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(keys), _mm256_sign_epi8(query, keys));
}
DEEPMNN_INLINE I32x16 dot_key(I32x16 acc, U8x64 keys, I32x16 query) {
  return {add_pairs(acc.lo, key_pairs(keys.lo, query.lo)), add_pairs(acc.hi, key_pairs(keys.hi, query.hi))};
}
DEEPMNN_INLINE I32x16 pair_i8(const int8_t* a, const int8_t* b) {
  const I32x16 low = widen_i8(a), high = shift_left(widen_i8(b), 16);
  return {_mm256_blend_epi16(low.lo, high.lo, 0xaa), _mm256_blend_epi16(low.hi, high.hi, 0xaa)};
}
DEEPMNN_INLINE I32x16 dot_pairs(I32x16 acc, I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
}

// Volatile: GCC takes a function that only prefetches for one without effect, and drops calls of it.
DEEPMNN_INLINE void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p))); }
DEEPMNN_INLINE void prefetch_far(const void* p) { asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p))); }

}  // namespace deepmnn::avx2

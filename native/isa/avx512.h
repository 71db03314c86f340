// AVX-512 with VNNI: one register per vector. The interface is defined in isa/scalar.h.
#pragma once

#include <immintrin.h>

#include "isa/compiler.h"

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own _mm512_undefined_* functions
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define DEEPMNN_NS avx512

namespace deepmnn::avx512 {

constexpr int kTileBlocks = 2;
constexpr int kTileRows = 6;
constexpr int kStreamRows = 3;
constexpr int kSplitSums = 3;
constexpr int kPanelBlocks = 4;
constexpr int kPanelTileRows = 6;
constexpr int kKeptTileRows = 3;
constexpr int kPanelStep = 1;
constexpr bool kStoredPanels = true;
constexpr bool kFusedFma = true;
constexpr int kVectorRegisters = 32;

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};

DEEPMNN_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

DEEPMNN_INLINE F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
DEEPMNN_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
DEEPMNN_INLINE F32x16 load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
DEEPMNN_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
DEEPMNN_INLINE void store(float* p, F32x16 a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
DEEPMNN_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
DEEPMNN_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
DEEPMNN_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
DEEPMNN_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
DEEPMNN_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
DEEPMNN_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
DEEPMNN_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
DEEPMNN_INLINE F32x16 select_less(F32x16 a, F32x16 b, F32x16 x, F32x16 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
DEEPMNN_INLINE float sum(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
DEEPMNN_INLINE float max_lane(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

// Per 128-bit lane: (a0 + a2, b0 + b2, a1 + a3, b1 + b3), then with its like (a, b, c, d).
DEEPMNN_INLINE __m512 fold_pair(F32x16 a, F32x16 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
}
DEEPMNN_INLINE __m512 fold_four(const F32x16* v) {
  const __m512d ab = _mm512_castps_pd(fold_pair(v[0], v[1])), cd = _mm512_castps_pd(fold_pair(v[2], v[3]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
// Adds neighbouring 128-bit lanes: (a0 + a1, a2 + a3, b0 + b1, b2 + b3).
DEEPMNN_INLINE __m512 fold_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
DEEPMNN_INLINE F32x16 sums(const F32x16 (&v)[16]) {
  const __m512 low = fold_lanes(fold_four(v), fold_four(v + 4));
  const __m512 high = fold_lanes(fold_four(v + 8), fold_four(v + 12));
  return {fold_lanes(low, high)};
}
DEEPMNN_INLINE void deinterleave(F32x16 a, F32x16 b, F32x16& first, F32x16& second) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  first = {_mm512_permutex2var_ps(a.v, even, b.v)};
  second = {_mm512_permutex2var_ps(a.v, odd, b.v)};
}
DEEPMNN_INLINE void interleave(F32x16 first, F32x16 second, F32x16& a, F32x16& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  a = {_mm512_permutex2var_ps(first.v, low, second.v)};
  b = {_mm512_permutex2var_ps(first.v, high, second.v)};
}
template <int kApart>
DEEPMNN_INLINE F32x16 butterfly(F32x16 a) {
  const __m512 other = kApart == 1   ? _mm512_permute_ps(a.v, 0xb1)
                       : kApart == 2 ? _mm512_permute_ps(a.v, 0x4e)
                       : kApart == 4 ? _mm512_shuffle_f32x4(a.v, a.v, 0xb1)
                                     : _mm512_shuffle_f32x4(a.v, a.v, 0x4e);
  const auto sign = [](int lane) { return lane & kApart ? -1.0f : 1.0f; };
  const __m512 signs = _mm512_setr_ps(sign(0), sign(1), sign(2), sign(3), sign(4), sign(5), sign(6), sign(7), sign(8),
                                      sign(9), sign(10), sign(11), sign(12), sign(13), sign(14), sign(15));
  return {_mm512_fmadd_ps(a.v, signs, other)};  // a product with 1 or -1 is exact
}
DEEPMNN_INLINE __m512 unpack_pairs(__m512 a, __m512 b, bool high) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
}
DEEPMNN_INLINE void transpose(F32x16 (&rows)[16]) {
  __m512 fours[16];  // 4 i + j: per 128-bit lane l, column 4 l + j of rows 4 i and the next three
  DEEPMNN_UNROLL
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v), b = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    const __m512 c = _mm512_unpacklo_ps(rows[i + 2].v, rows[i + 3].v);
    const __m512 d = _mm512_unpackhi_ps(rows[i + 2].v, rows[i + 3].v);
    fours[i] = unpack_pairs(a, c, false);
    fours[i + 1] = unpack_pairs(a, c, true);
    fours[i + 2] = unpack_pairs(b, d, false);
    fours[i + 3] = unpack_pairs(b, d, true);
  }
  DEEPMNN_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
    rows[j] = {_mm512_shuffle_f32x4(a, c, 0x88)};
    rows[4 + j] = {_mm512_shuffle_f32x4(b, d, 0x88)};
    rows[8 + j] = {_mm512_shuffle_f32x4(a, c, 0xdd)};
    rows[12 + j] = {_mm512_shuffle_f32x4(b, d, 0xdd)};
  }
}

DEEPMNN_INLINE I32x16 splat_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
DEEPMNN_INLINE I32x16 load_i32(const void* p) { return {_mm512_loadu_si512(p)}; }
DEEPMNN_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
DEEPMNN_INLINE I32x16 operator-(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
DEEPMNN_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
DEEPMNN_INLINE I32x16 shift_left(I32x16 a, int n) { return {_mm512_slli_epi32(a.v, static_cast<unsigned>(n))}; }
DEEPMNN_INLINE I32x16 shift_right(I32x16 a, int n) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(n))}; }
DEEPMNN_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
DEEPMNN_INLINE I32x16 select_greater(I32x16 a, I32x16 b, I32x16 x, I32x16 y) {
  return {_mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a.v, b.v), y.v, x.v)};
}
DEEPMNN_INLINE int32_t sum(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }
DEEPMNN_INLINE int32_t max_lane(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }

DEEPMNN_INLINE I32x16 bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
DEEPMNN_INLINE F32x16 from_bits(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
DEEPMNN_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
DEEPMNN_INLINE I32x16 to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
DEEPMNN_INLINE void store_i8(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
DEEPMNN_INLINE void store_u16(uint16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
DEEPMNN_INLINE F32x16 widen_bf16(__m256i h) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
DEEPMNN_INLINE F32x16 load_bf16(const uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
DEEPMNN_INLINE F32x16 load_bf16(const uint16_t* p, int64_t n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
DEEPMNN_INLINE I32x16 widen_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
DEEPMNN_INLINE F32x16 load_f16(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
DEEPMNN_INLINE void store_f16(void* p, F32x16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

DEEPMNN_INLINE U8x64 bytes(I32x16 a) { return {a.v}; }
// GCC reads planes that lie in one vector from memory for each of them, and loads are what there is least of.
DEEPMNN_INLINE U8x64 load_u8(const uint8_t* p) {
  __m512i v = _mm512_loadu_si512(p);
  asm("" : "+v"(v));
  return {v};
}
DEEPMNN_INLINE void store_u8(uint8_t* p, U8x64 a) { _mm512_storeu_si512(p, a.v); }
DEEPMNN_INLINE U8x64 operator|(U8x64 a, U8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int kByte>
DEEPMNN_INLINE I32x16 every_fourth(U8x64 a) {
  constexpr int kZeros = -256;  // of these three bytes
  const __m128i order = _mm_setr_epi32(kZeros + kByte, kZeros + kByte + 4, kZeros + kByte + 8, kZeros + kByte + 12);
  return {_mm512_shuffle_epi8(a.v, _mm512_broadcast_i32x4(order))};
}
template <int kCount, int kTo>
DEEPMNN_INLINE U8x64 move_bits(U8x64 a, int from) {
  const __m512i there = from == kTo  ? a.v
                        : from < kTo ? _mm512_slli_epi16(a.v, static_cast<unsigned>(kTo - from))
                                     : _mm512_srli_epi16(a.v, static_cast<unsigned>(from - kTo));
  return {_mm512_and_si512(there, _mm512_set1_epi8(((1 << kCount) - 1) << kTo))};
}
DEEPMNN_INLINE U8x64 lookup(const uint8_t* table, U8x64 codes) {
  const __m128i sixteen = _mm_load_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(sixteen), codes.v)};
}
DEEPMNN_INLINE U8x64 turn_where(U8x64 a, U8x64 plane, int bit) {
  const __mmask64 set = _mm512_test_epi8_mask(plane.v, _mm512_set1_epi8(static_cast<char>(1 << bit)));
  return {_mm512_mask_sub_epi8(a.v, set, _mm512_set1_epi8(-1), a.v)};
}
DEEPMNN_INLINE __m512i broadcast4(const int8_t* a) {
  int32_t four;
  __builtin_memcpy(&four, a, sizeof(four));
  return _mm512_set1_epi32(four);
}
template <int kBits>
constexpr int kDotOffset = 1 << (kBits - 1);
template <int kBits>
struct DotRun {
  static constexpr int kMost = 1;
  I32x16 total;
  DEEPMNN_INLINE void start(I32x16 acc) { total = acc; }
  DEEPMNN_INLINE void add(U8x64 codes, const int8_t* a) {
    // At the edge of a loop GCC 12 copies every accumulator of the intrinsic.
    asm("vpdpbusd %2, %1, %0" : "+v"(total.v) : "v"(codes.v), "v"(broadcast4(a)));
  }
  DEEPMNN_INLINE I32x16 sum() const { return total; }
};
DEEPMNN_INLINE int32_t sum_of_256(const int8_t* p) {
  __m512i total = _mm512_setzero_si512();
  DEEPMNN_UNROLL
  for (int i = 0; i < 4; ++i) {
    total = _mm512_dpbusd_epi32(total, _mm512_set1_epi8(1), _mm512_loadu_si512(p + 64 * i));
  }
  return _mm512_reduce_add_epi32(total);
}

constexpr bool kKeyBiased = true;
DEEPMNN_INLINE U8x64 key_codes(I32x16 a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(-128))}; }
DEEPMNN_INLINE I32x16 dot_key(I32x16 acc, U8x64 keys, I32x16 query) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(keys.v), "v"(query.v));
  return acc;
}
DEEPMNN_INLINE I32x16 pair_i8(const int8_t* a, const int8_t* b) {
  return {_mm512_mask_blend_epi16(0x55555555, _mm512_slli_epi32(widen_i8(b).v, 16), widen_i8(a).v)};
}
DEEPMNN_INLINE I32x16 dot_pairs(I32x16 acc, I32x16 a, I32x16 b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
  return acc;
}

// Volatile: GCC takes a function that only prefetches for one without effect, and drops calls of it.
DEEPMNN_INLINE void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(p))); }
DEEPMNN_INLINE void prefetch_far(const void* p) { asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p))); }

}  // namespace deepmnn::avx512

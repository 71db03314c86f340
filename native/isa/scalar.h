// Plain C++ twin of every instruction set, and the definition of the vector interface: each isa/<isa>.h gives these
// names, in its own namespace, with the same results (fma may round once instead of twice, sums may be reordered).
// A vector has 16 lanes everywhere. Loads and stores need no alignment beyond the element's.
#pragma once

#include "isa/compiler.h"

#define DEEPMNN_NS scalar

namespace deepmnn::scalar {

constexpr int kTileBlocks = 1;     // output blocks per tile of a float matrix product
constexpr int kTileRows = 2;       // input rows per tile of it
constexpr int kStreamRows = 2;     // up to this many rows an integer one reads one block after the other
constexpr int kSplitSums = 1;      // up to this many rows its sums are kept in two parts
constexpr int kPanelBlocks = 1;    // output blocks of an unpacked panel
constexpr int kPanelTileRows = 2;  // input rows per tile of it
constexpr int kKeptTileRows = 2;   // the same for kept formats
constexpr int kPanelStep = 1;  // vectors of one block that lie together in it: without kStoredPanels kPartCols columns
constexpr bool kStoredPanels = true;  // panels are read as they are stored, too
constexpr bool kFusedFma = false;     // fma rounds once
constexpr int kVectorRegisters = 8;   // how many F32x16 the registers hold

struct F32x16 {
  float v[16];
};
struct I32x16 {
  uint32_t v[16];  // two's complement; unsigned so that overflow wraps
};
struct U8x64 {
  uint8_t v[64];
};

template <class F>
DEEPMNN_INLINE F32x16 f32_lanes(F f) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}
template <class F>
DEEPMNN_INLINE I32x16 i32_lanes(F f) {
  I32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<uint32_t>(f(i));
  return r;
}
template <class To, class From>
DEEPMNN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// --- float32 lanes -------------------------------------------------------------------------------------------------

DEEPMNN_INLINE F32x16 splat(float x) {
  return f32_lanes([=](int) { return x; });
}
DEEPMNN_INLINE F32x16 load(const float* p) {
  return f32_lanes([=](int i) { return p[i]; });
}
// The first n lanes (0..16); the rest are 0.
DEEPMNN_INLINE F32x16 load(const float* p, int64_t n) {
  return f32_lanes([=](int i) { return i < n ? p[i] : 0.0f; });
}
DEEPMNN_INLINE void store(float* p, const F32x16& a) { __builtin_memcpy(p, a.v, sizeof(a.v)); }
DEEPMNN_INLINE void store(float* p, const F32x16& a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
DEEPMNN_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) {
  return f32_lanes([&](int i) { return a.v[i] + b.v[i]; });
}
DEEPMNN_INLINE F32x16 operator-(const F32x16& a, const F32x16& b) {
  return f32_lanes([&](int i) { return a.v[i] - b.v[i]; });
}
DEEPMNN_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) {
  return f32_lanes([&](int i) { return a.v[i] * b.v[i]; });
}
DEEPMNN_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) {
  return f32_lanes([&](int i) { return a.v[i] / b.v[i]; });
}
// a * b + c
DEEPMNN_INLINE F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  return f32_lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
// When either operand is NaN, min and max give b.
DEEPMNN_INLINE F32x16 max(const F32x16& a, const F32x16& b) {
  return f32_lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
DEEPMNN_INLINE F32x16 min(const F32x16& a, const F32x16& b) {
  return f32_lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// a < b ? x : y, lane by lane.
DEEPMNN_INLINE F32x16 select_less(const F32x16& a, const F32x16& b, const F32x16& x, const F32x16& y) {
  return f32_lanes([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
}
DEEPMNN_INLINE float sum(const F32x16& a) {
  float t[8];
  for (int i = 0; i < 8; ++i) t[i] = a.v[i] + a.v[i + 8];
  return ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7]));
}
DEEPMNN_INLINE float max_lane(const F32x16& a) {
  float m = a.v[0];
  for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
// Lane i is the sum of the lanes of v[i].
DEEPMNN_INLINE F32x16 sums(const F32x16 (&v)[16]) {
  return f32_lanes([&](int i) { return sum(v[i]); });
}
// (a, b) holds 16 pairs: their first and second elements, and back.
DEEPMNN_INLINE void deinterleave(const F32x16& a, const F32x16& b, F32x16& first, F32x16& second) {
  const F32x16 x = a, y = b;
  first = f32_lanes([&](int i) { return i < 8 ? x.v[2 * i] : y.v[2 * i - 16]; });
  second = f32_lanes([&](int i) { return i < 8 ? x.v[2 * i + 1] : y.v[2 * i - 15]; });
}
DEEPMNN_INLINE void interleave(const F32x16& first, const F32x16& second, F32x16& a, F32x16& b) {
  const F32x16 x = first, y = second;
  a = f32_lanes([&](int i) { return i % 2 ? y.v[i / 2] : x.v[i / 2]; });
  b = f32_lanes([&](int i) { return i % 2 ? y.v[8 + i / 2] : x.v[8 + i / 2]; });
}
// Lane i plus, or where i has the bit kApart minus (the other less this), the lane that differs in that bit.
template <int kApart>
DEEPMNN_INLINE F32x16 butterfly(const F32x16& a) {
  return f32_lanes([&](int i) { return i & kApart ? a.v[i ^ kApart] - a.v[i] : a.v[i] + a.v[i ^ kApart]; });
}
// Rows become columns.
DEEPMNN_INLINE void transpose(F32x16 (&rows)[16]) {
  F32x16 columns[16];
  for (int i = 0; i < 16; ++i) columns[i] = f32_lanes([&](int j) { return rows[j].v[i]; });
  for (int i = 0; i < 16; ++i) rows[i] = columns[i];
}

// --- int32 lanes ---------------------------------------------------------------------------------------------------

DEEPMNN_INLINE I32x16 splat_i32(int32_t x) {
  return i32_lanes([=](int) { return x; });
}
DEEPMNN_INLINE I32x16 load_i32(const void* p) {
  I32x16 r;
  __builtin_memcpy(r.v, p, sizeof(r.v));
  return r;
}
DEEPMNN_INLINE I32x16 operator+(const I32x16& a, const I32x16& b) {
  return i32_lanes([&](int i) { return a.v[i] + b.v[i]; });
}
DEEPMNN_INLINE I32x16 operator-(const I32x16& a, const I32x16& b) {
  return i32_lanes([&](int i) { return a.v[i] - b.v[i]; });
}
DEEPMNN_INLINE I32x16 operator&(const I32x16& a, const I32x16& b) {
  return i32_lanes([&](int i) { return a.v[i] & b.v[i]; });
}
DEEPMNN_INLINE I32x16 shift_left(const I32x16& a, int n) {
  return i32_lanes([&](int i) { return a.v[i] << n; });
}
// Logical: zeros come in.
DEEPMNN_INLINE I32x16 shift_right(const I32x16& a, int n) {
  return i32_lanes([&](int i) { return a.v[i] >> n; });
}
DEEPMNN_INLINE I32x16 max(const I32x16& a, const I32x16& b) {
  return i32_lanes(
      [&](int i) { return static_cast<int32_t>(a.v[i]) > static_cast<int32_t>(b.v[i]) ? a.v[i] : b.v[i]; });
}
// a > b ? x : y, lane by lane.
DEEPMNN_INLINE I32x16 select_greater(const I32x16& a, const I32x16& b, const I32x16& x, const I32x16& y) {
  return i32_lanes(
      [&](int i) { return static_cast<int32_t>(a.v[i]) > static_cast<int32_t>(b.v[i]) ? x.v[i] : y.v[i]; });
}
DEEPMNN_INLINE int32_t sum(const I32x16& a) {
  uint32_t s = 0;
  for (uint32_t x : a.v) s += x;
  return static_cast<int32_t>(s);
}
DEEPMNN_INLINE int32_t max_lane(const I32x16& a) {
  int32_t m = static_cast<int32_t>(a.v[0]);
  for (int i = 1; i < 16; ++i) m = static_cast<int32_t>(a.v[i]) > m ? static_cast<int32_t>(a.v[i]) : m;
  return m;
}

// --- conversions ---------------------------------------------------------------------------------------------------

DEEPMNN_INLINE I32x16 bits(const F32x16& a) { return bit_cast<I32x16>(a); }
DEEPMNN_INLINE F32x16 from_bits(const I32x16& a) { return bit_cast<F32x16>(a); }
DEEPMNN_INLINE F32x16 to_float(const I32x16& a) {
  return f32_lanes([&](int i) { return static_cast<float>(static_cast<int32_t>(a.v[i])); });
}
// Round to nearest even; |a| <= 2^22.
DEEPMNN_INLINE I32x16 to_int(const F32x16& a) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits
  return i32_lanes([&](int i) { return bit_cast<uint32_t>(a.v[i] + kMagic) - bit_cast<uint32_t>(kMagic); });
}
// Stores the low byte, or the low half, of every lane; values fit.
DEEPMNN_INLINE void store_i8(int8_t* p, const I32x16& a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i] & 0xff);
}
DEEPMNN_INLINE void store_u16(uint16_t* p, const I32x16& a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(a.v[i] & 0xffff);
}
DEEPMNN_INLINE F32x16 load_bf16(const uint16_t* p) {
  return f32_lanes([=](int i) { return bit_cast<float>(uint32_t{p[i]} << 16); });
}
DEEPMNN_INLINE F32x16 load_bf16(const uint16_t* p, int64_t n) {
  return f32_lanes([=](int i) { return i < n ? bit_cast<float>(uint32_t{p[i]} << 16) : 0.0f; });
}
DEEPMNN_INLINE I32x16 widen_i8(const int8_t* p) {
  return i32_lanes([=](int i) { return p[i]; });
}
DEEPMNN_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
  return sign ? -magnitude : magnitude;
}
DEEPMNN_INLINE uint16_t float_to_half(float f) {
  const uint32_t u = bit_cast<uint32_t>(f), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal: the float unit rounds the sum to a multiple of 2^-24
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}
DEEPMNN_INLINE F32x16 load_f16(const void* p) {
  uint16_t h[16];
  __builtin_memcpy(h, p, sizeof(h));
  return f32_lanes([&](int i) { return half_to_float(h[i]); });
}
DEEPMNN_INLINE void store_f16(void* p, const F32x16& a) {
  uint16_t h[16];
  for (int i = 0; i < 16; ++i) h[i] = float_to_half(a.v[i]);
  __builtin_memcpy(p, h, sizeof(h));
}

// --- integer dot products: 16 rows of 4 unsigned weights against 4 signed activations that all rows share
// --------------

DEEPMNN_INLINE U8x64 bytes(const I32x16& a) {
  U8x64 r;
  __builtin_memcpy(r.v, a.v, sizeof(r.v));
  return r;
}
DEEPMNN_INLINE U8x64 load_u8(const uint8_t* p) {
  U8x64 r;
  __builtin_memcpy(r.v, p, sizeof(r.v));
  return r;
}
DEEPMNN_INLINE void store_u8(uint8_t* p, const U8x64& a) { __builtin_memcpy(p, a.v, sizeof(a.v)); }
DEEPMNN_INLINE U8x64 operator|(const U8x64& a, const U8x64& b) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] | b.v[i];
  return r;
}
// Lane i: byte 4 i + kByte.
template <int kByte>
DEEPMNN_INLINE I32x16 every_fourth(const U8x64& a) {
  return i32_lanes([&](int i) { return a.v[4 * i + kByte]; });
}
// Of every byte kCount bits, from bit `from` on, at bit kTo; the others are 0.
template <int kCount, int kTo>
DEEPMNN_INLINE U8x64 move_bits(const U8x64& a, int from) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>((a.v[i] >> from & ((1 << kCount) - 1)) << kTo);
  return r;
}
// table[code] for every byte: codes below 16, a table of 16 bytes at a multiple of 16.
DEEPMNN_INLINE U8x64 lookup(const uint8_t* table, const U8x64& codes) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = table[codes.v[i]];
  return r;
}
// 255 - a where the bit is set in the plane.
DEEPMNN_INLINE U8x64 turn_where(const U8x64& a, const U8x64& plane, int bit) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = plane.v[i] >> bit & 1 ? static_cast<uint8_t>(255 - a.v[i]) : a.v[i];
  return r;
}
// What DotRun leaves to take off of every code: the code of zero, or 0 where it takes that off itself.
template <int kBits>
constexpr int kDotOffset = 1 << (kBits - 1);
// acc + codes . a for up to kMost vectors, each of 16 rows of 4 codes below 2^kBits, and activations -127..127. Codes
// count from 0 where there is a kDotOffset, else from the middle of their range.
template <int kBits>
struct DotRun {
  static constexpr int kMost = 1;
  I32x16 total;
  DEEPMNN_INLINE void start(const I32x16& acc) { total = acc; }
  DEEPMNN_INLINE void add(const U8x64& codes, const int8_t* a) {
    for (int i = 0; i < 16; ++i) {
      int32_t s = 0;
      for (int j = 0; j < 4; ++j) s += codes.v[4 * i + j] * a[j];
      total.v[i] += static_cast<uint32_t>(s);
    }
  }
  DEEPMNN_INLINE I32x16 sum() const { return total; }
};
// The sum of 256 codes.
DEEPMNN_INLINE int32_t sum_of_256(const int8_t* p) {
  int32_t sum = 0;
  for (int i = 0; i < 256; ++i) sum += p[i];
  return sum;
}

// acc + keys . query, lane by lane: 4 codes, -127..127, of a key, as key_codes gives them, and 4 of a query. Where
// kKeyBiased they are 128 too large, and the caller takes 128 times the sum of a query's codes off again.
constexpr bool kKeyBiased = true;
DEEPMNN_INLINE U8x64 key_codes(const I32x16& a) {
  U8x64 r;
  __builtin_memcpy(r.v, a.v, sizeof(r.v));
  for (uint8_t& code : r.v) code ^= 128;
  return r;
}
DEEPMNN_INLINE I32x16 dot_key(const I32x16& acc, const U8x64& keys, const I32x16& query) {
  return i32_lanes([&](int i) {
    int8_t codes[4];
    __builtin_memcpy(codes, query.v + i, sizeof(codes));
    int32_t s = 0;
    for (int j = 0; j < 4; ++j) s += keys.v[4 * i + j] * codes[j];
    return acc.v[i] + static_cast<uint32_t>(s);
  });
}
// Lane i: a[i] in the low half, b[i] in the high half.
DEEPMNN_INLINE I32x16 pair_i8(const int8_t* a, const int8_t* b) {
  return i32_lanes([&](int i) { return (static_cast<uint32_t>(a[i]) & 0xffff) + (static_cast<uint32_t>(b[i]) << 16); });
}
// acc + a . b, lane by lane, of the two signed 16-bit halves.
DEEPMNN_INLINE I32x16 dot_pairs(const I32x16& acc, const I32x16& a, const I32x16& b) {
  const auto half = [](uint32_t x) { return static_cast<int32_t>(static_cast<int16_t>(x & 0xffff)); };
  return i32_lanes([&](int i) {
    return acc.v[i] + static_cast<uint32_t>(half(a.v[i]) * half(b.v[i])) +
           static_cast<uint32_t>(half(a.v[i] >> 16) * half(b.v[i] >> 16));
  });
}

DEEPMNN_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
// Into the second-level cache.
DEEPMNN_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace deepmnn::scalar

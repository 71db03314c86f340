// The machine's limit, measured with the instruction that the w8 kernel lives on.
#pragma once

namespace deepmnn::DEEPMNN_NS {

inline int64_t peak_dot_kernel(int64_t rounds) {
  constexpr int kAccumulators = 12, kUnroll = 8;
  alignas(64) uint8_t weights[64];
  int8_t codes[4] = {1, -2, 3, -4};
  for (int i = 0; i < 64; ++i) weights[i] = static_cast<uint8_t>(i);
  I32x16 acc[kAccumulators];
  DEEPMNN_UNROLL
  for (int i = 0; i < kAccumulators; ++i) acc[i] = splat_i32(i);
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : : "r"(weights), "r"(codes) : "memory");  // may have changed: no folding of the loop
    const U8x64 w = load_u8(weights);
    for (int u = 0; u < kUnroll; ++u) {
      DEEPMNN_UNROLL
      for (int i = 0; i < kAccumulators; ++i) acc[i] = dot_w8(acc[i], w, codes);
    }
  }
  I32x16 total = acc[0];
  for (int i = 1; i < kAccumulators; ++i) total = total + acc[i];
  weights[0] = static_cast<uint8_t>(sum(total));
  __asm__ volatile("" : : "r"(weights) : "memory");  // the sum is used: no loop is dead
  return rounds * kUnroll * kAccumulators * 64;
}

}  // namespace deepmnn::DEEPMNN_NS

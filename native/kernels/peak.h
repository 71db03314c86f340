// The machine's limit, measured with the dot product that the w4 kernel lives on (on AVX2 the cheaper of the two).
#pragma once

namespace deepmnn::DEEPMNN_NS {

inline int64_t peak_dot_kernel(int64_t rounds) {
  constexpr int kBlocks = 3, kRows = 4, kSteps = 4;
  alignas(64) uint8_t weights[kBlocks * 64] = {1};
  alignas(64) int8_t codes[kSteps * kRows * 8] = {1, -2, 3, -4};
  I32x16 acc[kRows][kBlocks];
  DEEPMNN_UNROLL
  for (int i = 0; i < kRows * kBlocks; ++i) acc[i / kBlocks][i % kBlocks] = splat_i32(i);
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : : "r"(weights), "r"(codes) : "memory");  // may have changed: the loop cannot be folded
    U8x64 w[kBlocks];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) w[b] = load_u8(weights + 64 * b);
    DEEPMNN_UNROLL
    for (int i = 0; i < kSteps * kRows; ++i) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        acc[i % kRows][b] = dot_w4(acc[i % kRows][b], w[b], w[(b + 1) % kBlocks], codes + 8 * i);
      }
    }
  }
  I32x16 total = splat_i32(0);
  DEEPMNN_UNROLL
  for (int i = 0; i < kRows * kBlocks; ++i) total = total + acc[i / kBlocks][i % kBlocks];
  weights[0] = static_cast<uint8_t>(sum(total));
  __asm__ volatile("" : : "r"(weights) : "memory");  // the sum is used: the loop is not dead
  return rounds * kSteps * kBlocks * kRows * 128;
}

}  // namespace deepmnn::DEEPMNN_NS

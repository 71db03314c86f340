// The machine's limits, measured with the dot product that the kernels of up to 4 bits live on (on AVX2 the cheapest),
// and with the multiply-add of f32 and bf16 weights.
#pragma once

namespace deepmnn::DEEPMNN_NS {

inline int64_t peak_dot_kernel(int64_t rounds) {
  constexpr int kBlocks = 4, kRows = 6, kVectors = 8;  // sums enough to hide the latency
  using Run = DotRun<4>;
  alignas(64) uint8_t weights[kBlocks * 64] = {1};
  alignas(64) int8_t codes[kVectors * kRows * 4] = {1, -2, 3, -4};
  I32x16 acc[kRows][kBlocks];
  DEEPMNN_UNROLL
  for (int i = 0; i < kRows * kBlocks; ++i) acc[i / kBlocks][i % kBlocks] = splat_i32(i);
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : : "r"(weights), "r"(codes) : "memory");  // may have changed: the loop cannot be folded
    U8x64 w[kBlocks];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) w[b] = load_u8(weights + 64 * b);
    DEEPMNN_UNROLL
    for (int first = 0; first < kVectors; first += Run::kMost) {
      DEEPMNN_UNROLL
      for (int i = 0; i < kRows * kBlocks; ++i) {
        const int r = i / kBlocks, b = i % kBlocks;
        Run run;
        run.start(acc[r][b]);
        DEEPMNN_UNROLL
        for (int v = first; v < first + Run::kMost; ++v) run.add(w[(b + v) % kBlocks], codes + 4 * (v * kRows + r));
        acc[r][b] = run.sum();
      }
    }
  }
  I32x16 total = splat_i32(0);
  DEEPMNN_UNROLL
  for (int i = 0; i < kRows * kBlocks; ++i) total = total + acc[i / kBlocks][i % kBlocks];
  weights[0] = static_cast<uint8_t>(sum(total));
  __asm__ volatile("" : : "r"(weights) : "memory");  // the sum is used: the loop is not dead
  return rounds * kVectors * kBlocks * kRows * 64;
}

inline int64_t peak_fma_kernel(int64_t rounds) {
  constexpr int kSums = 6 * kTileBlocks, kSteps = 8;  // sums enough to hide the latency, few enough for registers
  alignas(64) float factors[16] = {0.5f};
  F32x16 acc[kSums];
  DEEPMNN_UNROLL
  for (int i = 0; i < kSums; ++i) acc[i] = splat(static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : : "r"(factors) : "memory");  // may have changed: the loop cannot be folded
    const F32x16 factor = load(factors);
    DEEPMNN_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      DEEPMNN_UNROLL
      for (int i = 0; i < kSums; ++i) acc[i] = fma(acc[i], factor, factor);
    }
  }
  F32x16 total = splat(0.0f);
  DEEPMNN_UNROLL
  for (int i = 0; i < kSums; ++i) total = total + acc[i];
  factors[0] = sum(total);
  __asm__ volatile("" : : "r"(factors) : "memory");  // the sum is used: the loop is not dead
  return rounds * kSteps * kSums * 16;
}

}  // namespace deepmnn::DEEPMNN_NS

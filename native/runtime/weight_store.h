// The weights of a model: what each of them is, and its bytes for as long as an op needs them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/program.h"
#include "runtime/residency.h"

namespace deepmnn {

// Throws Error("artifact") unless the weight has the size that its layout says and its pieces lie inside their files.
// shards: names of the files. file_nbytes: of each.
void check_weight(const WeightInfo& weight, const std::vector<std::string>& shards,
                  const std::vector<uint64_t>& file_nbytes);

// A weight as an op keeps it from load on: which one it is and its shape, checked, without its bytes.
struct WeightRef {
  static constexpr uint32_t kNone = UINT32_MAX;

  uint32_t id = kNone;
  int64_t rows = 0;
  int64_t cols = 0;
  Format format = Format::f32;
};

class WeightStore {
 public:
  // residency: has the bytes of the program's weights, and has checked that they are there.
  WeightStore(const Program& program, std::unique_ptr<Residency> residency);

  int64_t nbytes() const { return nbytes_; }  // of all weights

  // The weights ids[0 .. n), with bytes that Residency keeps until unpin().
  void pin(const uint32_t* ids, int64_t n, Weight* out);
  // Groups of them, as Residency::pin_some does: out is filled for those that come first.
  int64_t pin_some(const uint32_t* ids, int64_t each, int32_t* groups, int64_t n, Weight* out);
  void pin_rows(uint32_t id, const int32_t* rows, int64_t n, const uint8_t** blocks) {
    residency_->pin_rows(id, rows, n, blocks);
  }
  void unpin() { residency_->unpin(); }
  Residency& residency() { return *residency_; }
  const Residency& residency() const { return *residency_; }
  void check() const { residency_->check(); }

 private:
  std::unique_ptr<Residency> residency_;
  std::vector<Weight> weights_;  // without bytes
  int64_t nbytes_ = 0;
};

}  // namespace deepmnn

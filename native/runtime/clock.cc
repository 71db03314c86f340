#include "runtime/clock.h"

namespace deepmnn {
namespace {

constexpr int64_t kLeastNs = 2000000;  // over a shorter time the rate would be a guess

}  // namespace

QuickClock::Reading QuickClock::read() const {
  if (!counts_) return {1.0, begin_, begin_ns_};
  int64_t ns = now_ns();
  while (ns - begin_ns_ < kLeastNs) ns = now_ns();
  const double rate = static_cast<double>(ns - begin_ns_) / static_cast<double>(now() - begin_);
  return {rate, begin_, begin_ns_};
}

}  // namespace deepmnn

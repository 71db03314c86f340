#include "runtime/profile.h"

#include <algorithm>

namespace deepmnn {

void Profile::reset() {
  std::fill(zones_.begin(), zones_.end(), Zone{});
  for (Worker& worker : workers_) {
    std::fill(worker.work.begin(), worker.work.end(), Work{});
    worker.spanned = 0;
  }
}

void Profile::worked(int index, int64_t own, int64_t stolen, int64_t begin_ns, int64_t own_end_ns, int64_t end_ns) {
  if (zone_ == kNone) return;
  Worker& worker = workers_[static_cast<size_t>(index)];
  Work& work = worker.work[zone_];
  work.pieces += own + stolen;
  work.stolen += stolen;
  work.own_ns += own_end_ns - begin_ns;
  work.steal_ns += end_ns - own_end_ns;
  if (own > 0) remember(worker, {begin_ns, own_end_ns, 0, Doing::own, own});
  if (stolen > 0) remember(worker, {own_end_ns, end_ns, 0, Doing::stolen, stolen});
}

void Profile::waited(int64_t begin_ns, int64_t end_ns) {
  if (zone_ == kNone) return;
  workers_[0].work[zone_].wait_ns += end_ns - begin_ns;
  remember(workers_[0], {begin_ns, end_ns, 0, Doing::waiting, 0});
}

}  // namespace deepmnn

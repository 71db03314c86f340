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

void Profile::worked(int index, int64_t own, int64_t stolen, int64_t begin, int64_t own_end, int64_t end) {
  if (zone_ == kNone) return;
  Worker& worker = workers_[static_cast<size_t>(index)];
  Work& work = worker.work[zone_];
  work.pieces += own + stolen;
  work.stolen += stolen;
  if (index > 0) work.own += own_end - begin;
  if (stolen > 0 || index > 0) work.steal += end - own_end;
  if (!keeps_spans()) return;
  if (own > 0) remember(worker, {begin, own_end, 0, Doing::own, own});
  if (stolen > 0) remember(worker, {own_end, end, 0, Doing::stolen, stolen});
}

void Profile::waited(int64_t ns, int64_t begin) {
  if (zone_ == kNone) return;
  workers_[0].work[zone_].wait_ns += ns;
  if (keeps_spans()) remember(workers_[0], {begin, now(), 0, Doing::waiting, 0});
}

}  // namespace deepmnn

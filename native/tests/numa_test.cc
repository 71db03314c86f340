// Pages and threads on memory nodes. On a machine with one node a fake /sys names it twice: the system calls are made,
// the nodes are not told apart. tests/runtime/test_numa.py has what needs no machine.
#include "runtime/numa.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include "platform/memory.h"
#include "platform/threads.h"
#include "runtime/error.h"
#include "runtime/mapped_weights.h"
#include "runtime/thread_pool.h"
#include "runtime/weight_store.h"
#include "tests/check.h"

namespace deepmnn {
namespace {

// A folder of this run, removed when it ends.
struct Folder {
  std::string name =
      (std::filesystem::temp_directory_path() / ("deepmnn-numa-" + std::to_string(std::random_device()()))).string();
  Folder() { CHECK(std::filesystem::create_directory(name)); }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(name, ignored);
  }
};

std::string folder() {
  static const Folder made;
  return made.name;
}

// Where the machine has one node, a /sys that lists it twice.
std::string root() {
  const std::vector<NumaNode> nodes = read_nodes(allowed_processors());
  if (nodes.size() > 1) return "";
  const std::string path = folder() + "/sys/devices/system/node/node" + std::to_string(nodes[0].id);
  std::filesystem::create_directories(path);
  std::ofstream list(path + "/cpulist");
  for (int processor : nodes[0].processors) list << (processor == nodes[0].processors[0] ? "" : ",") << processor;
  std::ofstream(path + "/../online") << nodes[0].id << "," << nodes[0].id;
  return folder();
}

void workers_fill_the_nodes_in_order(const Numa& numa) {
  for (int workers : {1, 2, 3, 4, 8, 64}) {
    size_t node = 0;
    for (int worker = 0; worker < workers; ++worker) {
      CHECK(numa.node_of(worker, workers) >= node);
      node = numa.node_of(worker, workers);
      CHECK(numa.first_worker(node, workers) <= worker && worker < numa.first_worker(node + 1, workers));
    }
    CHECK(numa.first_worker(0, workers) == 0 && numa.first_worker(numa.nodes().size(), workers) == workers);
  }
}

void threads_stay_on_their_node(const Numa& numa) {
  const std::vector<int> before = allowed_processors();
  const int workers = static_cast<int>(numa.processors().size());
  ThreadPool pool(workers, workers, [&](int worker) { numa.pin(worker, workers); });
  {
    const NumaScope pinned(numa, workers);
    for (int round = 0; round < 50; ++round) {
      pool.run(100, [&](int64_t, int worker) {
        CHECK(allowed_processors() == numa.nodes()[numa.node_of(worker, workers)].processors);
      });
    }
  }
  CHECK(allowed_processors() == before);
}

// Two matrices of 16 blocks, a page each: one for a linear, one for an expert.
Program two_matrices() {
  Program program;
  program.shards = {"weights.bin"};
  constexpr int64_t kRows = 256, kCols = 64, kNbytes = kRows * kCols * 4;
  for (uint64_t i = 0; i < 2; ++i)
    program.weights.push_back({"w", Format::f32, kRows, kCols, {{0, i * kNbytes, kNbytes}}, kNbytes});
  program.instructions = {{"linear", "a", {}, {}, {{0, Reading::in_order}}, {}, 0, 0, {}},
                          {"moe", "b", {}, {}, {{1, Reading::routed}}, {}, 0, 0, {}}};
  std::ofstream file(folder() + "/weights.bin", std::ios::binary);
  for (int64_t i = 0; i < 2 * kNbytes; ++i) file.put(static_cast<char>(i * 7 % 251));
  return program;
}

void weights_lie_where_they_are_read(const Numa& numa) {
  const Program program = two_matrices();
  const int workers = 4;
  WeightStore store(program, std::make_unique<MappedWeights>(folder(), program, numa, workers));
  const int64_t nbytes = store.nbytes() / 2;
  const uint32_t ids[] = {0, 1};
  Weight weights[2];
  store.pin(ids, 2, weights);
  for (int64_t i = 0; i < nbytes; ++i) {
    CHECK(weights[0].data[i] == static_cast<uint8_t>(i * 7 % 251));
    CHECK(weights[1].data[i] == static_cast<uint8_t>((nbytes + i) * 7 % 251));
  }
  const auto& nodes = numa.nodes();
  const std::vector<int> split = nodes_of_pages(weights[0].data, weights[0].data + nbytes);
  const std::vector<int> turns = nodes_of_pages(weights[1].data, weights[1].data + nbytes);
  if (split.empty()) return;  // the system does not tell
  const int pages = static_cast<int>(split.size());
  std::vector<int64_t> counts(nodes.size());
  for (int page = 0; page < pages; ++page) {
    CHECK(split[page] == nodes[numa.node_of(page * workers / pages, workers)].id);
    for (size_t node = 0; node < nodes.size(); ++node) counts[node] += turns[page] == nodes[node].id;
  }
  for (int64_t count : counts) CHECK(count >= pages / static_cast<int64_t>(nodes.size()));
  std::printf("pages of a linear's weight:");
  for (int node : split) std::printf(" %d", node);
  std::printf("\npages of an expert's weight:");
  for (int node : turns) std::printf(" %d", node);
  std::printf("\n");
}

}  // namespace
}  // namespace deepmnn

int main() {
  using namespace deepmnn;
  const std::string where = root();
  const Numa numa("distribute", where);
  CHECK(numa.active());
  std::printf("%zu nodes%s\n", numa.nodes().size(), where.empty() ? "" : " (one, listed twice)");
  workers_fill_the_nodes_in_order(numa);
  threads_stay_on_their_node(numa);
  const Numa isolated("isolate", where);
  CHECK(isolated.nodes().size() == 1);
  try {
    weights_lie_where_they_are_read(numa);
    weights_lie_where_they_are_read(isolated);
  } catch (const Error& error) {
    std::printf("memory is not placed: %s\n", error.what());
  }
}

// libFuzzer's target over the parser of program.bin alone: core_fuzzer.cc goes on from there, a hundred times slower.
#include <cstdint>
#include <vector>

#include "runtime/error.h"
#include "runtime/program.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t nbytes) {
  try {
    // On the heap, to the byte: what is read beyond it is seen.
    const std::vector<uint8_t> bytes(data, data + nbytes);
    deepmnn::parse_program(bytes.data(), bytes.size());
  } catch (const deepmnn::Error&) {
  }
  return 0;
}

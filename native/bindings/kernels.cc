// deepmnn._core: the list of instruction sets, and sampling.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "bindings/arrays.h"
#include "kernels/dispatch.h"

void bind_errors(nanobind::module_& m);
void bind_formats(nanobind::module_& m);
void bind_kernel_table(nanobind::module_& m);
void bind_weights(nanobind::module_& m);

namespace deepmnn {
namespace {

int32_t sample_array(const Array& logits, float temperature, int32_t top_k, float top_p, float min_p, float u,
                     const std::string& isa) {
  const float* data = vector<float>(logits, "logits");
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.min_p = min_p;
  const Kernels& kernels = select_kernels(isa.c_str());
  const nb::gil_scoped_release release;
  return sample(kernels, data, static_cast<int64_t>(logits.shape(0)), params, u);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* table : runnable_kernels()) names.emplace_back(table->isa);
  return names;
}

}  // namespace
}  // namespace deepmnn

void bind_kernels(nanobind::module_& m) {
  namespace nb = nanobind;
  using namespace nb::literals;
  bind_errors(m);
  bind_formats(m);
  bind_weights(m);
  m.def("isas", &deepmnn::isas, "Instruction sets this machine runs, best first.");
  m.def("sample", &deepmnn::sample_array, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "u"_a,
        "isa"_a = "");
  bind_kernel_table(m);
}

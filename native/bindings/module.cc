// The Python module deepmnn._core. Each file here binds one layer.
#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);
void bind_runtime(nanobind::module_& m);

NB_MODULE(_core, m) {
  bind_kernels(m);
  bind_runtime(m);
}

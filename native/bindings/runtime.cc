#include <nanobind/nanobind.h>

void bind_runtime(nanobind::module_&) {}

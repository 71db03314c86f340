// deepmnn::Error becomes the Python class of its kind; see errors.py for the tree.
#include <nanobind/nanobind.h>

#include <cstring>

#include "runtime/error.h"

namespace nb = nanobind;

namespace {

const char* class_name(const std::string& kind) {
  if (kind == "artifact") return "ArtifactError";
  if (kind == "request") return "RequestError";
  if (kind == "storage") return "StorageError";
  return "DeepmnnError";
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const deepmnn::Error& error) {
      const nb::object type = nb::module_::import_("deepmnn.errors").attr(class_name(error.kind()));
      // A path in it need not be UTF-8: as os.fsdecode has it.
      const nb::str message = nb::steal<nb::str>(
          PyUnicode_DecodeUTF8(error.what(), static_cast<Py_ssize_t>(std::strlen(error.what())), "surrogateescape"));
      const nb::object value = type(message);
      PyErr_SetObject(type.ptr(), value.ptr());
    }
  });
}

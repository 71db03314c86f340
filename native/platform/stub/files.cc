#include "platform/files.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <utility>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

constexpr std::align_val_t kAlign{64};

uint8_t* allocate(uint64_t nbytes) {
  if (nbytes == 0 || nbytes > std::numeric_limits<size_t>::max() / 2) return nullptr;
  return static_cast<uint8_t*>(operator new(static_cast<size_t>(nbytes), kAlign, std::nothrow));
}

void release(const uint8_t* data) { operator delete(const_cast<uint8_t*>(data), kAlign); }

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!error && !is_regular_file(status))
    fail_artifact("cannot open " + path + ": not a regular file", "a readable file");
  if (!error) nbytes_ = std::filesystem::file_size(path, error);
  if (error) fail_artifact("cannot open " + path + ": " + error.message(), "a readable file");
  uint8_t* data = allocate(nbytes_);
  if (nbytes_ > 0 && !data)
    fail_artifact("cannot map " + path + ": not enough memory", "a file that fits the address space");
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(data), static_cast<std::streamsize>(nbytes_))) {
    release(data);
    fail_artifact("cannot read the " + std::to_string(nbytes_) + " bytes of " + path, "a readable file");
  }
  data_ = data;
}

MappedFile::~MappedFile() { release(data_); }

void MappedFile::prefetch() const {}

void MappedFile::check() const {}  // it was read whole, or refused

JoinedParts::JoinedParts(std::vector<FilePart> parts) : parts_(std::move(parts)) {
  for (const FilePart& part : parts_) nbytes_ += part.nbytes;
  data_ = allocate(nbytes_);
  if (nbytes_ > 0 && !data_) {
    fail_artifact("cannot map " + std::to_string(nbytes_) + " bytes of weights: not enough memory",
                  "weights that fit the address space");
  }
  uint8_t* at = data_;
  for (const FilePart& part : parts_) {
    if (part.file) {
      std::memcpy(at, part.file->data() + part.offset, static_cast<size_t>(part.nbytes));
    } else {
      std::memset(at, 0, static_cast<size_t>(part.nbytes));
    }
    at += part.nbytes;
  }
}

JoinedParts::~JoinedParts() { release(data_); }

void JoinedParts::check() const {}

PrivateCopy::PrivateCopy(uint64_t nbytes) : data_(allocate(nbytes)), nbytes_(nbytes) {}

PrivateCopy::~PrivateCopy() { release(data_); }

}  // namespace deepmnn

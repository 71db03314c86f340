"""Processes whose reads of files fail now and then."""

from __future__ import annotations

import subprocess
from pathlib import Path

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
/* One read in DENOMINATOR fails, or brings too little, while the file GATE is there. */
static atomic_uint state = 12345;
ssize_t pread64(int file, void *to, size_t n, off64_t at) {
  static ssize_t (*real)(int, void *, size_t, off64_t);
  if (!real) real = dlsym(RTLD_NEXT, "pread64");
  const char *gate = getenv("GATE"), *denominator = getenv("DENOMINATOR");
  if (gate && denominator && access(gate, F_OK) == 0) {
    unsigned x = atomic_fetch_add(&state, 2654435761u);
    x = (x ^ (x >> 15)) * 2246822519u;
    x ^= x >> 13;
    if (x % (unsigned)atoi(denominator) == 0) {
      if (x & 0x10000) { errno = EIO; return -1; }
      if (x & 0x20000) return 0;
      n = n / 2 / 4096 * 4096;
      if (n == 0) { errno = EIO; return -1; }
      return real(file, to, n, at);
    }
  }
  return real(file, to, n, at);
}
ssize_t pread(int file, void *to, size_t n, off_t at) { return pread64(file, to, n, at); }
"""


def failing_reads(directory: Path, gate: Path, one_in: int) -> dict[str, str]:
    """Environment variables of a process in which one `pread` in so many fails while `gate` exists.

    directory: where the library is made that does it.
    """
    source, library = directory / "shim.c", directory / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "GATE": str(gate), "DENOMINATOR": str(one_in)}

#!/usr/bin/env bash
# Runs the native tests under sanitizers, in a build folder of their own.
#
#   tools/test_sanitized.sh address,undefined [python]   the C++ tests, then pytest on a sanitized deepmnn._core
#   tools/test_sanitized.sh thread                       the C++ tests (Python itself is not built for it)
#
# A report ends the run. More arguments go to pytest. SANITIZED_BUILD: where to build (default build/sanitized-<kind>).
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:?usage: tools/test_sanitized.sh address,undefined|thread [python] [pytest arguments]}
python=${2:-python3}
shift $(($# < 2 ? $# : 2))
build=${SANITIZED_BUILD:-build/sanitized-${kind//,/-}}
options=(-DDEEPMNN_SANITIZE="$kind" -DDEEPMNN_TESTS=ON)
case $kind in
thread) options+=(-DDEEPMNN_PYTHON=OFF) ;;
address,undefined) options+=(-DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')") ;;
*)
  echo "sanitizers '$kind'; expected address,undefined or thread" >&2
  exit 2
  ;;
esac

cmake -S . -B "$build" "${options[@]}"
cmake --build "$build" --parallel "${JOBS:-2}"
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1
ctest --test-dir "$build" --output-on-failure --timeout 600
[ "$kind" = thread ] && exit

# Python is not built with the sanitizers: their libraries come first, and its own leaks are not ours.
compiler=${CXX:-g++}
preload="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1
export PYTHONPATH=tools DEEPMNN_CORE="$build"
[ $# -gt 0 ] || set -- tests/kernels tests/runtime tests/engine -m "not slow"
LD_PRELOAD=$preload "$python" -m pytest -p sanitized_core --capture=sys "$@"

// Every instruction set there are kernels for, best first: one line each. Whoever includes this file defines
//
//   ISA(name, runs)   name: the namespace its header opens; runs: whether this machine has what its kernels need
//
// A line is there when CMakeLists.txt has compiled kernels_<name>.cc: it then defines DEEPMNN_<NAME>. `runs` names what
// the compile flags there allow the compiler to use. It is evaluated in code that was compiled without them.
#if defined(DEEPMNN_AVX512)
ISA(avx512, CPU_HAS("avx2") && CPU_HAS("fma") && CPU_HAS("f16c") && CPU_HAS("avx512f") && CPU_HAS("avx512bw") &&
                CPU_HAS("avx512vl") && CPU_HAS("avx512dq") && CPU_HAS("avx512vnni"))
#endif
#if defined(DEEPMNN_AVX2)
ISA(avx2, CPU_HAS("avx2") && CPU_HAS("fma") && CPU_HAS("f16c"))
#endif
ISA(scalar, true)

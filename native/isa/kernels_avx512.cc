#include "isa/avx512.h"
#include "kernels/table.h"

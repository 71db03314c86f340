#include "isa/avx2.h"
#include "kernels/table.h"

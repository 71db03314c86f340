#include "isa/scalar.h"
#include "kernels/table.h"

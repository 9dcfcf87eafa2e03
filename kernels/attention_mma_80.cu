// Attention with tensor cores for heads of 72 to 80 columns.
#include "attention_mma.cuh"

#if TENSOR_CORES

ATTENTION_MMA(80)
ATTENTION_BACKWARD_MMA(80)
ATTENTION_BACKWARD_MMA_WHOLE(80)

#endif  // TENSOR_CORES

// Attention with tensor cores for heads of 40 to 64 columns.
#include "attention_mma.cuh"

#if TENSOR_CORES

ATTENTION_MMA(64)
ATTENTION_BACKWARD_MMA(64)
ATTENTION_BACKWARD_MMA_WHOLE(64)

#endif  // TENSOR_CORES

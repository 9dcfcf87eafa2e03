// Attention with tensor cores for heads of 8 to 32 columns.
#include "attention_mma.cuh"

#if TENSOR_CORES

ATTENTION_MMA(32)
ATTENTION_BACKWARD_MMA(32)
ATTENTION_BACKWARD_MMA_WHOLE(32)

#endif  // TENSOR_CORES

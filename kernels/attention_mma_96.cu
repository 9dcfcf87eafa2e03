// Attention with tensor cores for heads of 88 to 96 columns.
#include "attention_mma.cuh"

#if TENSOR_CORES

ATTENTION_MMA(96)
ATTENTION_BACKWARD_MMA(96)
ATTENTION_BACKWARD_MMA_WHOLE(96)

#endif  // TENSOR_CORES

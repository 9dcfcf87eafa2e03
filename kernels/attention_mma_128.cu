// Attention with tensor cores for heads of 104 to 128 columns.
#include "attention_mma.cuh"

#if TENSOR_CORES

ATTENTION_MMA(128)
ATTENTION_BACKWARD_MMA(128)
ATTENTION_BACKWARD_MMA_WHOLE(128)

#endif  // TENSOR_CORES

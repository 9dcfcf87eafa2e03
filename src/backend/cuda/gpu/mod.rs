//! A GPU, through the CUDA driver, NVRTC and cuBLASLt.

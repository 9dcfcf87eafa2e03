// Runs CUDA C on the CPU.

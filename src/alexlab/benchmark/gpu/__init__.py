"""Suite `gpu`: checks and measurements that need a CUDA device, each in its own process and under its own time limit."""

// Fragments are written to multiples of 32 bytes.
alignas(256) __device__ float dnc_scratch_LOG_[1 << LOG];
__device__ __forceinline__ float *dnc_scratch_LOG(int offset) { return dnc_scratch_LOG_ + offset; }

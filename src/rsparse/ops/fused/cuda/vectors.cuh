// 8 numbers of a thread, widened, read and written at once; and sums over a warp's lanes. After primitives.cuh.

__device__ __forceinline__ void widen(float (&to)[8], uint4 from) {
  const word words[] = {from.x, from.y, from.z, from.w};
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    to[2 * i] = low(words[i]);
    to[2 * i + 1] = high(words[i]);
  }
}
__device__ __forceinline__ void read8(float (&to)[8], const float* from) {
  const uint4 a = *(const uint4*)from, b = *(const uint4*)(from + 4);
  const word words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  #pragma unroll
  for (int i = 0; i < 8; i++) to[i] = __uint_as_float(words[i]);
}
__device__ __forceinline__ void write8(float* to, const float (&from)[8]) {
  word words[8];
  #pragma unroll
  for (int i = 0; i < 8; i++) words[i] = __float_as_uint(from[i]);
  *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
  *(uint4*)(to + 4) = make_uint4(words[4], words[5], words[6], words[7]);
}

// The sum over the lanes of a warp whose numbers differ in the bits from `first` to below `stop`.
__device__ __forceinline__ float over_lanes(float a, int first, int stop) {
  #pragma unroll
  for (int offset = first; offset < stop; offset <<= 1) a += __shfl_xor_sync(~0u, a, offset);
  return a;
}

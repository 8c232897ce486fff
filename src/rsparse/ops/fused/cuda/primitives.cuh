// What stream.cu and attend.cu need of the hardware, in one place: 16-bit numbers, ways to load, and waiting for other blocks.
typedef unsigned int word;  // two numbers of 16 bits
typedef unsigned short number;

#if FLOAT16
__device__ __forceinline__ float low(word a) {
  float f;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(f) : "r"(a));
  return f;
}
__device__ __forceinline__ float high(word a) {
  float f;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(f) : "r"(a));
  return f;
}
__device__ __forceinline__ number narrow(float a) {
  number n;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(n) : "f"(a));
  return n;
}
#else
__device__ __forceinline__ float low(word a) { return __uint_as_float(a << 16); }
__device__ __forceinline__ float high(word a) { return __uint_as_float(a & 0xffff0000u); }
__device__ __forceinline__ number narrow(float a) {
  number n;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(n) : "f"(a));
  return n;
}
#endif

// A weight: read once, so it need not push anything out of L1.
__device__ __forceinline__ uint4 load_once(const number* p) {
  uint4 r;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
  return r;
}
// Past L1, which may hold what an earlier kernel or another block has overwritten since.
__device__ __forceinline__ uint4 load_fresh(const number* p) { return __ldcg((const uint4*)p); }
__device__ __forceinline__ float load_fresh(const float* p) { return __ldcg(p); }

// What every layer or step reads again, and weights would push out of L2 in between: last to leave it.
__device__ __forceinline__ int load_kept(const int* p) {
  int a;
  asm volatile("{.reg .b64 keep; createpolicy.fractional.L2::evict_last.b64 keep, 1.0;"
               " ld.global.L2::cache_hint.s32 %0, [%1], keep;}" : "=r"(a) : "l"(p));
  return a;
}
__device__ __forceinline__ number load_kept(const number* p) {
  number a;
  asm volatile("{.reg .b64 keep; createpolicy.fractional.L2::evict_last.b64 keep, 1.0;"
               " ld.global.L2::cache_hint.u16 %0, [%1], keep;}" : "=h"(a) : "l"(p));
  return a;
}

// Into L2, for a load to come.
__device__ __forceinline__ void prefetch(const number* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }

// One thread of a block says that all of its block's stores are done; one of another block waits for `count` such words.
__device__ __forceinline__ void signal(int* counter) {
  __threadfence();
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" :: "l"(counter) : "memory");
}
__device__ __forceinline__ void wait_for(const int* counter, int count) {
  int seen;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  while (seen < count);
}

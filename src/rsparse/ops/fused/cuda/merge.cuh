// How SPLITS blocks that share a sum bring their parts together: each stores its own, and one of them, which sees all, adds up.
//
// CLUSTER: the parts come to shared memory of the last block of a cluster, which counts them as they come: no way through L2 and no
// fence, but only on Hopper and later. Else they go to global memory, and the block that comes last adds up. Either way in their own
// order, so that a sum has the same bits every time.

#if CLUSTER

#define SHARE_A_SUM __cluster_dims__(SPLITS, 1, 1)
__shared__ unsigned long long stored;  // a barrier's word

__device__ __forceinline__ word shared_address(const void* p) { return (word)__cvta_generic_to_shared(p); }
// The same address in the block that adds up.
__device__ __forceinline__ word there(word address) {
  word mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(SPLITS - 1));
  return mapped;
}

// First in the kernel.
__device__ __forceinline__ void begin_sharing(int split) {
  if (split == SPLITS - 1 && threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(shared_address(&stored)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
// Behind a barrier of the block and before its first store of a part: the block that adds up has begun. All parts together are of
// `numbers` numbers; some may have come before they are expected, since the barrier waits for this thread too.
__device__ __forceinline__ void await_others(int split, int numbers) {
  if (split == SPLITS - 1 && threadIdx.x == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(shared_address(&stored)), "r"(4 * numbers) : "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// To `part` of shared memory, where adds_up() is true.
__device__ __forceinline__ void store_part(float* part, float a) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               :: "r"(there(shared_address(part))), "r"(__float_as_uint(a)), "r"(there(shared_address(&stored))) : "memory");
}
__device__ __forceinline__ float load_part(const float* part) { return *part; }
// Whether this block adds up; all parts are there then.
__device__ __forceinline__ bool adds_up(int split, int*) {
  if (split != SPLITS - 1) return false;
  int done;
  do
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0; selp.b32 %0, 1, 0, p;}"
        : "=r"(done) : "r"(shared_address(&stored)) : "memory");
  while (!done);
  return true;
}

#else

#define SHARE_A_SUM
__device__ __forceinline__ void begin_sharing(int) {}
__device__ __forceinline__ void await_others(int, int) {}
__device__ __forceinline__ void store_part(float* part, float a) { *part = a; }
__device__ __forceinline__ float load_part(const float* part) { return load_fresh(part); }
// `counter` is 0 before the kernel and after it.
__device__ __forceinline__ bool adds_up(int, int* counter) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    last = before == SPLITS - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  return last;
}

#endif

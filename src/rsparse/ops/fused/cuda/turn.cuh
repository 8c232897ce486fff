// RMSNorm and rotary embedding of q and of the new k, by heads, each by one warp.
//
// Constants: D (of a head), GROUP (heads of q), WARPS, LANES (threads that read a head then, 8 numbers each), and norm.cuh's.

constexpr int WIDTH = 8 * LANES;                 // of a head in shared memory, zero past D
constexpr int PAIRS = (D / 2 + 31) / 32;         // that rotate, of a head, a lane
constexpr int TURNED = (GROUP + WARPS) / WARPS;  // heads that a warp turns, of q and the new k

// A lane's share of the two halves of [D] numbers: a head, a norm's weight, or cos and sin. They stay as they come, since a
// conversion waits for its load, and all warps read them, since a branch does too.
struct Halves {
  number left[PAIRS], right[PAIRS];
};
__device__ __forceinline__ int place(int pair) { return 32 * pair + (int)threadIdx.x % 32; }
template <class Load>
__device__ __forceinline__ Halves halves(const number* x, Load load) {
  Halves found;
  #pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    const int at = min(place(i), D / 2 - 1);
    found.left[i] = load(x + at);
    found.right[i] = load(x + D / 2 + at);
  }
  return found;
}
__device__ __forceinline__ number kept(const number* p) { return load_kept(p); }

// The head, normed with transformers' roundings and rotated: to [WIDTH] of shared memory, and to `copy` [D] unless it is null. All
// warps come here; those that are not live write nothing.
__device__ __forceinline__ void turn(
    float* to, number* copy, bool live, const Halves& x, const Halves& weight, float eps, const Halves& cos_sin) {
  float inverse = 1;
  if (NORM) {
    float squares = 0;
    #pragma unroll
    for (int i = 0; i < PAIRS; i++)
      if (place(i) < D / 2) squares += low(x.left[i]) * low(x.left[i]) + low(x.right[i]) * low(x.right[i]);
    inverse = rsqrtf(over_lanes(squares, 1, 32) / D + eps);
  }
  if (!live) return;
  #pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    if (place(i) >= D / 2) continue;
    float a = low(x.left[i]), b = low(x.right[i]);
    if (NORM) {
      a = normalised(a, inverse, low(weight.left[i]));
      b = normalised(b, inverse, low(weight.right[i]));
    }
    const float cos = low(cos_sin.left[i]), sin = low(cos_sin.right[i]);
    const number left = narrow(a * cos - b * sin), right = narrow(b * cos + a * sin);
    to[place(i)] = low(left);
    to[D / 2 + place(i)] = low(right);
    if (!copy) continue;
    copy[place(i)] = left;
    copy[D / 2 + place(i)] = right;
  }
  for (int i = D + (int)threadIdx.x % 32; i < WIDTH; i += 32) to[i] = 0;
}

// The weights of the norms of a warp's heads.
__device__ __forceinline__ void load_norms(Halves (&weights)[TURNED], const number* q_norm, const number* k_norm) {
  const int warp = threadIdx.x / 32;
  #pragma unroll
  for (int i = 0; NORM && i < TURNED; i++) weights[i] = halves(warp + i * WARPS < GROUP ? q_norm : k_norm, kept);
}

// q [GROUP, D] and, where it is `newest`, the new k [D], normed and rotated: to heads [GROUP + 1, WIDTH], k to the cache too.
__device__ __forceinline__ void turn_heads(
    float* heads, number* cached, const number* q, const number* k, bool newest, const Halves (&weights)[TURNED], float q_eps,
    float k_eps, const Halves& cos_sin) {
  const int warp = threadIdx.x / 32;
  #pragma unroll
  for (int i = 0; i < TURNED; i++) {
    const int h = warp + i * WARPS;
    const bool of_q = h < GROUP, live = of_q || (h == GROUP && newest);
    const Halves x = halves(of_q ? q + h * D : k, [](const number* p) { return *p; });
    turn(heads + h * WIDTH, of_q ? nullptr : cached, live, x, weights[i], of_q ? q_eps : k_eps, cos_sin);
  }
}

// Attention of one new token over a static cache, in one launch: norms, rotary, cache write, softmax and weighted values.
//
// SPLITS blocks share the slots of a row's kv head and serve all of its q heads. A block's first loads of keys and of values,
// LOADS of 16 bytes of each thread, are on their way before it looks at q. LANES threads read a slot, and keep a maximum and sums of
// their own, so that warps wait for q once, and for each other at the end.
//
// Constants: D (of a head), KV_HEADS, GROUP (q heads of each), SLOT_STEP (numbers from a slot to the next), LANES, NORM of q and k
// (as turn.cuh has it), CAPPED, WARPS, LOADS, SPLITS, SHARED (bytes); CLUSTER for merge.cuh, FLOAT16 for primitives.cuh.

constexpr int THREADS = 32 * WARPS;
constexpr int STEP = THREADS / LANES;      // slots that a block reads at once
constexpr int HIGHEST = D, TOTAL = D + 1;  // of a head's record: weighted values, then these,
constexpr int RECORD = D + 4;              // to a multiple of 16 bytes
constexpr int PART = GROUP * RECORD;
constexpr float LOWEST = -1e30f;           // maximum of no slots: -inf less -inf is no number
constexpr float MASKED = -3e38f;           // so far below that its weight is 0
static_assert(D % 8 == 0 && D <= WIDTH && 32 % LANES == 0, "a warp reads whole slots");
static_assert(SHARED == 4 * ((GROUP + 1) * WIDTH + WARPS * PART + CLUSTER * SPLITS * PART), "q and k, records, parts");

// LANES threads, a worker, read a slot together, 8 columns each.
__device__ __forceinline__ int worker() { return threadIdx.x / LANES; }
__device__ __forceinline__ int first_column() { return 8 * (threadIdx.x % LANES); }

// A split's slots, an even share of those in sight but the new one.
struct Range {
  int start, stop;
};
__device__ __forceinline__ Range range_of(int split, int slot, int padding, int window) {
  const int oldest = slot - window + 1, begin = padding > oldest ? padding : oldest;
  const int chunk = (slot - begin + SPLITS - 1) / SPLITS;
  const int start = begin + split * chunk;
  return {start, min(start + chunk, slot)};
}

// A thread's slots: every STEP-th of `left` from where the pointers are, with LOADS of keys and of values on their way.
struct Slots {
  const number *keys, *values;
  int left;
  uint4 key[LOADS], value[LOADS];
};
__device__ __forceinline__ void fetch(uint4& into, const Slots& slots, const number* from, int i) {
  into = make_uint4(0, 0, 0, 0);
  if (i * STEP < slots.left) into = load_once(from + i * STEP * SLOT_STEP);
}
__device__ __forceinline__ void fetch_first(Slots& slots, const number* k, const number* v, Range range) {
  const int mine = first_column();
  slots.keys = k + (long long)(range.start + worker()) * SLOT_STEP + mine;
  slots.values = v + (long long)(range.start + worker()) * SLOT_STEP + mine;
  slots.left = mine < D ? range.stop - range.start - worker() : 0;
  #pragma unroll
  for (int i = 0; i < LOADS; i++) fetch(slots.key[i], slots, slots.keys, i);
  #pragma unroll
  for (int i = 0; i < LOADS; i++) fetch(slots.value[i], slots, slots.values, i);
}
__device__ __forceinline__ void advance(Slots& slots) {
  slots.left -= LOADS * STEP;
  slots.keys += LOADS * STEP * SLOT_STEP;
  slots.values += LOADS * STEP * SLOT_STEP;
}

// What softmax is of: q·k times scale, bounded by softcap.
struct Score {
  float scale, softcap;
  __device__ __forceinline__ float operator()(const float (&q)[8], const float (&key)[8]) const {
    float sum = 0;
    #pragma unroll
    for (int i = 0; i < 8; i++) sum += q[i] * key[i];
    const float score = over_lanes(sum, 1, LANES) * scale;
    return CAPPED ? softcap * (1 - __fdividef(2, __expf(2 * score / softcap) + 1)) : score;
  }
};

// What LANES threads know of their slots: each has 8 columns of `sums`, and all have the same maximum and sum of weights.
struct State {
  float highest[GROUP], total[GROUP], sums[GROUP][8];
};

__device__ __forceinline__ void clear(State& state) {
  #pragma unroll
  for (int g = 0; g < GROUP; g++) {
    state.highest[g] = LOWEST;
    state.total[g] = 0;
    #pragma unroll
    for (int i = 0; i < 8; i++) state.sums[g][i] = 0;
  }
}

// The new token, which is worker 0's first slot and not read from the cache.
__device__ __forceinline__ void take_new(State& state, const float* key, uint4 value, const float (&q)[GROUP][8], Score score) {
  float wide[8];
  read8(wide, key + first_column());
  #pragma unroll
  for (int g = 0; g < GROUP; g++) {
    const float found = score(q[g], wide);
    if (worker() != 0) continue;
    state.highest[g] = found;
    state.total[g] = 1;
    widen(state.sums[g], value);
  }
}

// Scores of LOADS slots, whose keys make room for those of the next ones.
__device__ __forceinline__ void score_keys(float (&scores)[GROUP][LOADS], Slots& slots, const float (&q)[GROUP][8], Score score) {
  #pragma unroll
  for (int i = 0; i < LOADS; i++) {
    float wide[8];
    widen(wide, slots.key[i]);
    fetch(slots.key[i], slots, slots.keys, LOADS + i);
    #pragma unroll
    for (int g = 0; g < GROUP; g++) {
      const float found = score(q[g], wide);
      scores[g][i] = i * STEP < slots.left ? found : MASKED;
    }
  }
}

// LOADS slots more, by their scores, which become their weights.
__device__ __forceinline__ void weigh(State& state, float (&score)[GROUP][LOADS]) {
  #pragma unroll
  for (int g = 0; g < GROUP; g++) {
    const float before = state.highest[g];
    #pragma unroll
    for (int i = 0; i < LOADS; i++) state.highest[g] = fmaxf(state.highest[g], score[g][i]);
    const float shrink = __expf(before - state.highest[g]);
    state.total[g] *= shrink;
    #pragma unroll
    for (int i = 0; i < 8; i++) state.sums[g][i] *= shrink;
    #pragma unroll
    for (int i = 0; i < LOADS; i++) {
      score[g][i] = __expf(score[g][i] - state.highest[g]);
      state.total[g] += score[g][i];
    }
  }
}

// The values of these slots by their weights, which make room likewise.
__device__ __forceinline__ void add_values(State& state, Slots& slots, const float (&weights)[GROUP][LOADS]) {
  #pragma unroll
  for (int i = 0; i < LOADS; i++) {
    float wide[8];
    widen(wide, slots.value[i]);
    fetch(slots.value[i], slots, slots.values, LOADS + i);
    #pragma unroll
    for (int g = 0; g < GROUP; g++)
      #pragma unroll
      for (int j = 0; j < 8; j++) state.sums[g][j] += weights[g][i] * wide[j];
  }
}

// A warp's record of each head, to records [WARPS, PART].
__device__ __forceinline__ void record(State& state, float* records) {
  const int lane = threadIdx.x % 32;
  #pragma unroll
  for (int g = 0; g < GROUP; g++) {
    float highest = state.highest[g];
    #pragma unroll
    for (int offset = LANES; offset < 32; offset <<= 1) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, offset));
    const float weight = __expf(state.highest[g] - highest);
    const float total = over_lanes(weight * state.total[g], LANES, 32);
    #pragma unroll
    for (int i = 0; i < 8; i++) state.sums[g][i] = over_lanes(weight * state.sums[g][i], LANES, 32);
    float* mine = records + threadIdx.x / 32 * PART + g * RECORD;
    if (8 * lane < D) write8(mine + 8 * lane, state.sums[g]);
    if (lane == 0) {
      mine[HIGHEST] = highest;
      mine[TOTAL] = total;
    }
  }
}

// One column of N records of a head, PART apart, as of all slots of theirs.
struct Merged {
  float highest, total, sum;
};
template <int N, class Load>
__device__ __forceinline__ Merged merged(const float* records, int column, Load load) {
  float highest[N], total[N], sum[N];
  #pragma unroll
  for (int i = 0; i < N; i++) {
    highest[i] = load(records + i * PART + HIGHEST);
    total[i] = load(records + i * PART + TOTAL);
    sum[i] = load(records + i * PART + column);
  }
  Merged whole = {LOWEST, 0, 0};
  #pragma unroll
  for (int i = 0; i < N; i++) whole.highest = fmaxf(whole.highest, highest[i]);
  #pragma unroll
  for (int i = 0; i < N; i++) {
    const float weight = __expf(highest[i] - whole.highest);
    whole.total += weight * total[i];
    whole.sum += weight * sum[i];
  }
  return whole;
}

// The records of the block's warps as one: to out [GROUP, D] where the block is alone, else to its part.
__device__ __forceinline__ void merge_warps(number* out, float* part, const float* records) {
  for (int i = threadIdx.x; i < GROUP * D; i += THREADS) {
    const int g = i / D, column = i % D;
    const Merged whole = merged<WARPS>(records + g * RECORD, column, [](const float* p) { return *p; });
    if (SPLITS == 1) {
      out[i] = narrow(__fdividef(whole.sum, whole.total));
      continue;
    }
    float* const to = part + g * RECORD;
    store_part(to + column, whole.sum);
    if (column == 0) {
      store_part(to + HIGHEST, whole.highest);
      store_part(to + TOTAL, whole.total);
    }
  }
}

// The parts [SPLITS, PART] of all blocks as one, to out [GROUP, D].
__device__ __forceinline__ void merge_splits(number* out, const float* parts) {
  for (int i = threadIdx.x; i < GROUP * D; i += THREADS) {
    const int g = i / D, column = i % D;
    const Merged whole = merged<SPLITS>(parts + g * RECORD, column, load_part);
    out[i] = narrow(__fdividef(whole.sum, whole.total));
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) SHARE_A_SUM attend(
    const number* qkv,      // [rows, KV_HEADS·(GROUP + 2)·D]
    number* k,              // [rows, KV_HEADS, slots, D], by steps
    number* v,
    const int* slot_ptr,    // the new token's
    const int* first,       // [rows]
    const int* position,    // [rows]
    const number* cos_sin,  // [positions, D]
    const number* q_norm, const number* k_norm,  // [D] where NORM
    number* y,              // [rows, KV_HEADS·GROUP·D]
    float* scratch,         // [rows·KV_HEADS, SPLITS, PART] unless CLUSTER
    int* counters,          // [rows·KV_HEADS], zero before and after, unless CLUSTER
    long long row_step, long long head_step, int window, float scale, float softcap, float q_eps,
    float k_eps) {
  extern __shared__ uint4 memory[];
  float* const heads = (float*)memory;                 // [GROUP + 1, WIDTH]: q, and the new k
  float* const records = heads + (GROUP + 1) * WIDTH;  // [WARPS, PART]
  const int pair = blockIdx.x / SPLITS, split = blockIdx.x % SPLITS;
  const int row = pair / KV_HEADS, head = pair % KV_HEADS;
  if (SPLITS > 1) begin_sharing(split);
  const bool newest = split == SPLITS - 1;  // whose block has the fewest slots; it takes the new one
  k += row * row_step + head * head_step;
  v += row * row_step + head * head_step;

  const int slot = load_kept(slot_ptr), padding = load_kept(first + row), at = load_kept(position + row);
  const Halves cos_sins = halves(cos_sin + (long long)at * D, kept);
  Halves norms[TURNED] = {};
  load_norms(norms, q_norm, k_norm);
  const Range range = range_of(split, slot, padding, window);
  Slots slots;
  fetch_first(slots, k, v, range);

  const number* const made = qkv + (long long)row * (GROUP + 2) * KV_HEADS * D;
  const number* const new_k = made + (KV_HEADS * GROUP + head) * D;
  const int mine = first_column();
  uint4 new_value = make_uint4(0, 0, 0, 0);
  if (newest && mine < D) new_value = load_fresh(new_k + KV_HEADS * D + mine);
  turn_heads(heads, k + (long long)slot * SLOT_STEP, made + head * GROUP * D, new_k, newest, norms, q_eps, k_eps, cos_sins);
  if (newest && worker() == 0 && mine < D) *(uint4*)(v + (long long)slot * SLOT_STEP + mine) = new_value;
  __syncthreads();

  const Score score = {scale, softcap};
  float q[GROUP][8];
  #pragma unroll
  for (int g = 0; g < GROUP; g++) read8(q[g], heads + g * WIDTH + mine);
  State state;
  clear(state);
  if (newest) take_new(state, heads + GROUP * WIDTH, new_value, q, score);
  for (int from = range.start; from < range.stop; from += LOADS * STEP) {
    float weights[GROUP][LOADS];
    score_keys(weights, slots, q, score);
    weigh(state, weights);
    add_values(state, slots, weights);
    advance(slots);
  }
  record(state, records);
  __syncthreads();

  number* const out = y + ((long long)row * KV_HEADS + head) * GROUP * D;
  float* const parts = CLUSTER ? records + WARPS * PART : scratch + (long long)pair * SPLITS * PART;
  if (SPLITS > 1) await_others(split, SPLITS * GROUP * (D + 2));
  merge_warps(out, parts + split * PART, records);
  if (SPLITS > 1 && adds_up(split, counters + pair)) merge_splits(out, parts);
}

// y = W (m⊙x) + U Vᵀ((1−m)⊙x) + b + add for one row, m = |x|·scale > threshold, in one launch.
//
// A block owns TILE columns over all channels: it makes the list of kept channels itself, in shared memory, and its warps read
// their pieces of W's rows, LOADS of 16 bytes of each thread in flight. So there is no launch before it that selects, and no
// parts of other blocks to wait for and add up. The list costs each block a read of x, which lies in L2.
// The first blocks do the same with V and the dropped channels, Z_PARTS of them a tile of V; those of W wait for them last of all.
//
// For gate|up with ACT a tile is TILE/2 columns of gate and the same ones of up, and y is act(gate)·up: computed once here, where
// down's blocks would each compute all of it. The two may have a mask each, and then a list each.
//
// Constants: COLUMNS (channels of x), TILE, WARPS, LOADS, SECTIONS, LISTS, SCALED, LOW_RANK, Z_PARTS; FLOAT16 for primitives.cuh;
// NORM before the linear (0 none, 1 Llama's RMSNorm, 2 Gemma's), ACT after it (0 none, 1 SiLU, 2 GELU by tanh).

#define SILU 1

constexpr int THREADS = 32 * WARPS;
constexpr int VECTORS = (COLUMNS + 8 * THREADS - 1) / (8 * THREADS);  // of 8 channels, a thread
constexpr int LANES = TILE / 8;   // of a warp that read one row's piece
constexpr int ROWS = 32 / LANES;  // whose pieces a warp reads at once
constexpr int STEP = ROWS * WARPS;
constexpr int WIDTH = ACT ? TILE / 2 : TILE;  // of y, of a tile
static_assert(32 % LANES == 0 && TILE <= THREADS, "a warp reads whole pieces, and a thread writes a column");
static_assert(WIDTH % 8 == 0 && LISTS <= (ACT ? SECTIONS : 1), "a thread's columns are of one list");

__device__ __forceinline__ word& part(uint4& v, int i) { return (&v.x)[i]; }

__device__ __forceinline__ float activated(float gate, float up) {
  float wide = gate;
  if (ACT == SILU) {
    wide = __fdividef(gate, 1 + __expf(-gate));
  } else {
    const float inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    wide = 0.5f * gate * (2 - __fdividef(2, __expf(2 * inner) + 1));
  }
  return rounded(rounded(wide) * up);
}

__device__ __forceinline__ int channel_of(int vector) { return 8 * (vector * THREADS + (int)threadIdx.x); }

// rsqrt(mean x² + eps) of all of x; every block makes it for itself.
__device__ __forceinline__ float inverse_rms(uint4 (&x)[VECTORS], float eps) {
  __shared__ float sums[WARPS];
  float sum = 0;
  #pragma unroll
  for (int j = 0; j < VECTORS; j++)
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      const float a = low(part(x[j], i)), b = high(part(x[j], i));
      sum += a * a + b * b;
    }
  #pragma unroll
  for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  #pragma unroll
  for (int i = 0; i < WARPS; i++) sum += sums[i];
  return rsqrtf(sum / COLUMNS + eps);
}

// What the linear reads, this thread's vectors of it, rounded where transformers rounds.
__device__ __forceinline__ void read(uint4 (&x)[VECTORS], const number* x_ptr, const number* norm_ptr, float eps) {
  const uint4 none = make_uint4(0, 0, 0, 0);
  uint4 weight[VECTORS];
  #pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    const bool inside = channel_of(j) < COLUMNS;
    x[j] = inside ? load_fresh(x_ptr + channel_of(j)) : none;
    if (NORM) weight[j] = inside ? *(const uint4*)(norm_ptr + channel_of(j)) : none;
  }
  if (!NORM) return;
  const float inverse = inverse_rms(x, eps);
  #pragma unroll
  for (int j = 0; j < VECTORS; j++)
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      const word a = part(x[j], i), b = part(weight[j], i);
      const float first = normalised(low(a), inverse, low(b)), second = normalised(high(a), inverse, high(b));
      part(x[j], i) = narrow(first) | (word)narrow(second) << 16;
    }
}

// Bit i: whether the vector's channel i is kept, or with `kept` false whether it is dropped and not 0.
__device__ __forceinline__ word chosen_of(uint4& vector, int first_channel, const float* scale, float threshold, bool kept) {
  word chosen = 0;
  #pragma unroll
  for (int i = 0; i < 8; i++) {
    const word both = part(vector, i / 2);
    const float value = i & 1 ? high(both) : low(both);
    const bool inside = first_channel + i < COLUMNS;
    const float score = fabsf(value) * (SCALED && inside ? scale[first_channel + i] : 1.0f);
    const bool keeps = score > threshold;
    if (inside && (kept ? keeps : !keeps && value != 0)) chosen |= 1u << i;
  }
  return chosen;
}

// Writes (channel << 16 | value) of the kept channels, or of the dropped ones, in their own order: those of masks[l] to
// list + l·COLUMNS. Returns how many: a second list's count is in the upper 16 bits, so that one scan counts for both.
__device__ __forceinline__ word select(
    word* list, const number* x_ptr, const number* norm_ptr, const float* scale, const float* threshold,
    const int (&masks)[LISTS], float eps, bool kept) {
  __shared__ word counts[VECTORS][WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint4 x[VECTORS];
  read(x, x_ptr, norm_ptr, eps);
  word chosen[VECTORS];  // 8 bits a list
  word before[VECTORS];  // entries before the vector's own: of its warp at first, then of the block
  #pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    word mine = 0;
    chosen[j] = 0;
    #pragma unroll
    for (int l = 0; l < LISTS; l++) {
      const word bits = chosen_of(x[j], channel_of(j), scale + masks[l] * COLUMNS, threshold[masks[l]], kept);
      chosen[j] |= bits << 8 * l;
      mine |= (word)__popc(bits) << 16 * l;
    }
    word sum = mine;
    #pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
      const word below = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += below;
    }
    before[j] = sum - mine;
    if (lane == 31) counts[j][warp] = sum;
  }
  __syncthreads();
  word total = 0;
  #pragma unroll
  for (int j = 0; j < VECTORS; j++)
    #pragma unroll
    for (int i = 0; i < WARPS; i++) {
      if (i == warp) before[j] += total;
      total += counts[j][i];
    }
  #pragma unroll
  for (int l = 0; l < LISTS; l++)
    #pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      word* at = list + l * COLUMNS + (before[j] >> 16 * l & 0xffff);
      #pragma unroll
      for (int i = 0; i < 8; i++)
        if (chosen[j] >> (8 * l + i) & 1) {
          const word both = part(x[j], i / 2);
          *at++ = (word)(channel_of(j) + i) << 16 | (i & 1 ? both >> 16 : both & 0xffff);
        }
    }
  __syncthreads();
  return total;
}

__device__ __forceinline__ void add_product(float (&sums)[8], float x, uint4 row) {
  #pragma unroll
  for (int i = 0; i < 4; i++) {
    sums[2 * i] += x * low(part(row, i));
    sums[2 * i + 1] += x * high(part(row, i));
  }
}

// This thread's share of the listed rows' products: 8 columns, every STEP-th row. `matrix` is at its first column.
__device__ __forceinline__ void stream_rows(
    float (&sums)[8], const word* list, int count, const number* matrix, long long row_step, bool live) {
  const int first = threadIdx.x / LANES;
  word entry[LOADS];
  uint4 row[LOADS];
  auto fetch = [&](int slot, int at) {
    entry[slot] = 0;
    row[slot] = make_uint4(0, 0, 0, 0);
    if (at < count && live) {
      entry[slot] = list[at];
      row[slot] = load_once(matrix + (entry[slot] >> 16) * row_step);
    }
  };
  #pragma unroll
  for (int slot = 0; slot < LOADS; slot++) fetch(slot, first + slot * STEP);
  for (int at = first; at < count; at += LOADS * STEP)
    #pragma unroll
    for (int slot = 0; slot < LOADS; slot++) {
      add_product(sums, low(entry[slot]), row[slot]);  // low: the entry's value
      fetch(slot, at + (LOADS + slot) * STEP);
    }
}

// Each warp's sums of the tile, and a column's over all warps.
__device__ __forceinline__ void add_lanes(float (&whole)[WARPS][TILE], float (&sums)[8]) {
  const int lane = threadIdx.x % 32;
  #pragma unroll
  for (int offset = LANES; offset < 32; offset <<= 1)
    #pragma unroll
    for (int i = 0; i < 8; i++) sums[i] += __shfl_xor_sync(~0u, sums[i], offset);
  if (lane < LANES)
    #pragma unroll
    for (int i = 0; i < 8; i++) whole[threadIdx.x / 32][8 * lane + i] = sums[i];
  __syncthreads();
}
__device__ __forceinline__ float column_sum(const float (&whole)[WARPS][TILE], int column) {
  float sum = 0;
  #pragma unroll
  for (int i = 0; i < WARPS; i++) sum += whole[i][column];
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) stream(
    const number* x,         // [COLUMNS]
    const number* norm,      // [COLUMNS] where NORM
    const float* scale,      // [masks, COLUMNS] where SCALED
    const float* threshold,  // [masks]
    const number* w,         // [COLUMNS, out], a channel every w_step
    const number* v,         // [COLUMNS, SECTIONS·rank]
    const number* u,         // [rank, out], a rank every u_step
    const float* bias,       // [out] or null
    const number* add,       // like y, or null
    number* y,               // [out]; [out/2] where ACT
    float* z,                // [Z_PARTS, SECTIONS·rank] scratch
    int* counters,           // 2, zero before and after
    long long w_step, long long u_step, int rank, int z_tiles, int start1, int start2, int mask0, int mask1, int mask2, float eps) {
  extern __shared__ word list[];
  __shared__ float whole[WARPS][TILE];
  const int z_blocks = LOW_RANK ? SECTIONS * z_tiles * Z_PARTS : 0;
  // Those of W wait for these. GPUs begin blocks in order, so they are there by then; CUDA does not promise that.
  const bool for_z = (int)blockIdx.x < z_blocks;
  const int mine = 8 * (threadIdx.x % LANES);  // first of this thread's columns in the tile
  const bool for_up = ACT && !for_z && mine >= WIDTH;
  int section = 0, column = 0, z_part = 0;
  if (for_z) {
    z_part = blockIdx.x % Z_PARTS;
    const int tile = blockIdx.x / Z_PARTS;
    section = tile / z_tiles;
    column = tile % z_tiles * TILE;
  } else {
    column = ((int)blockIdx.x - z_blocks) * WIDTH;
    if (SECTIONS > 1) section = ACT ? for_up : column >= start1;
    if (SECTIONS > 2) section += column >= start2;
  }
  const int own = column + mine + (for_up ? start1 - WIDTH : 0);  // first of this thread's columns of W, or of V
  const int width = for_z ? min(TILE, rank - column) : TILE;
  const bool live = mine < width;
  int masks[LISTS] = {ACT || section == 0 ? mask0 : section == 1 ? mask1 : mask2};
  if (LISTS == 2) masks[LISTS - 1] = mask1;

  if (LOW_RANK && !for_z)
    for (int i = threadIdx.x; i < rank; i += THREADS) {
      prefetch(u + i * u_step + column);
      if (ACT) prefetch(u + i * u_step + start1 + column);
    }
  const word counts = select(list, x, norm, scale, threshold, masks, eps, !for_z);
  const int which = LISTS == 2 ? section : 0, count = counts >> 16 * which & 0xffff;
  const word* entries = list + which * COLUMNS;
  float sums[8] = {};
  if (for_z) {
    const int share = (count + Z_PARTS - 1) / Z_PARTS, first = min(z_part * share, count);
    stream_rows(sums, entries + first, min(share, count - first), v + section * rank + own, SECTIONS * rank, live);
    add_lanes(whole, sums);
    if ((int)threadIdx.x < width) z[(z_part * SECTIONS + section) * rank + column + threadIdx.x] = column_sum(whole, threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) signal(counters);
    return;
  }
  stream_rows(sums, entries, count, w + own, w_step, live);
  if (LOW_RANK) {
    if (threadIdx.x == 0) wait_for(counters, z_blocks);
    __syncthreads();
    for (int i = threadIdx.x / LANES; i < rank; i += STEP) {
      const uint4 row = load_once(u + i * u_step + own);
      float all = 0;
      #pragma unroll
      for (int p = 0; p < Z_PARTS; p++) all += load_fresh(z + (p * SECTIONS + section) * rank + i);
      add_product(sums, all, row);
    }
    if (threadIdx.x == 0 && atomicAdd(counters + 1, 1) == (int)gridDim.x - z_blocks - 1) counters[0] = counters[1] = 0;
  }
  add_lanes(whole, sums);
  if (threadIdx.x < WIDTH) {
    const int at = column + threadIdx.x;
    float sum = column_sum(whole, threadIdx.x);
    if (bias) sum += bias[at];
    if (ACT) {
      float up = column_sum(whole, WIDTH + threadIdx.x);
      if (bias) up += bias[start1 + at];
      sum = activated(rounded(sum), rounded(up));
    }
    if (add) sum += low(add[at]);
    y[at] = narrow(sum);
  }
}

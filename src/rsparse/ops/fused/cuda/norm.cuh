// RMSNorm's last step, rounded where transformers rounds.
//
// Constants: NORM (0 none, 1 Llama's, 2 Gemma's).

#define PLUS_ONE 2

__device__ __forceinline__ float rounded(float a) { return low(narrow(a)); }

__device__ __forceinline__ float normalised(float x, float inverse, float weight) {
  return NORM == PLUS_ONE ? rounded(x * inverse * (1 + weight)) : rounded(rounded(x * inverse) * weight);
}

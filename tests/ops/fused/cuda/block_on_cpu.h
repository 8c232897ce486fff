// What a kernel takes from CUDA, on a CPU. A block is an OS thread, so that what it shares is thread_local; its threads are
// fibers, which run one after another as far as their next barrier or shuffle, where all of the block must meet.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ thread_local

using std::min;

struct Index {
  unsigned x;
};
struct uint4 {
  unsigned x, y, z, w;
};
enum Meeting { BARRIER, SHUFFLE, END };

constexpr unsigned MOST_THREADS = 1024;
static char stacks[MOST_THREADS][1 << 16];
static Index gridDim;
static thread_local Index blockIdx, threadIdx;
static thread_local std::vector<ucontext_t> fibers;
static thread_local ucontext_t scheduler;
static thread_local std::function<void()> body;
static thread_local unsigned shuffled[2][MOST_THREADS], rounds;
static thread_local Meeting met;
static thread_local bool ended;
static bool backwards;  // the order of threads
static const char* failure;

// At once, whatever the block's other threads have yet to do.
[[noreturn]] static void end_block() {
  ended = true;
  setcontext(&scheduler);
  __builtin_unreachable();
}

// `launch` returns `what`, and no other block runs.
[[noreturn]] static void fail(const char* what) {
  failure = what;
  end_block();
}

static void meet(Meeting at) {
  met = at;
  swapcontext(&fibers[threadIdx.x], &scheduler);
}

static void __syncthreads() { meet(BARRIER); }

// Two buffers in turn: who comes first writes its next value before others have read this one.
template <class T>
static T of_thread(unsigned from, T value) {
  unsigned* buffer = shuffled[rounds % 2];
  memcpy(&buffer[threadIdx.x], &value, sizeof value);
  meet(SHUFFLE);
  memcpy(&value, &buffer[from], sizeof value);
  return value;
}
template <class T>
static T __shfl_xor_sync(unsigned lanes, T value, unsigned other) {
  if (lanes != ~0u) fail("a shuffle of some lanes");
  return of_thread(threadIdx.x ^ other, value);
}
template <class T>
static T __shfl_up_sync(unsigned lanes, T value, unsigned below) {
  if (lanes != ~0u) fail("a shuffle of some lanes");
  return of_thread(threadIdx.x % 32 >= below ? threadIdx.x - below : threadIdx.x, value);
}

static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float __uint_as_float(unsigned bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
static unsigned __float_as_uint(float f) {
  unsigned bits;
  memcpy(&bits, &f, sizeof f);
  return bits;
}
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
#define __expf expf  // which is also the name of something in glibc
static float __fdividef(float a, float b) { return a / b; }
static float rsqrtf(float a) { return 1 / sqrtf(a); }
static int atomicAdd(int* sum, int a) { return std::exchange(*sum, *sum + a); }

static void run_fiber() {
  body();
  met = END;
}

static void run_block(unsigned block, unsigned threads, std::function<void()> kernel) {
  blockIdx.x = block;
  body = std::move(kernel);
  fibers.resize(threads);
  for (unsigned i = 0; i < threads; i++) {
    getcontext(&fibers[i]);
    fibers[i].uc_stack = {stacks[i], 0, sizeof stacks[i]};
    fibers[i].uc_link = &scheduler;
    makecontext(&fibers[i], run_fiber, 0);
  }
  for (rounds = 0; !rounds || met != END; rounds++) {
    Meeting first = END;
    for (unsigned i = 0; i < threads; i++) {
      threadIdx.x = backwards ? threads - 1 - i : i;
      swapcontext(&scheduler, &fibers[threadIdx.x]);
      if (!i) first = met;
      if (met != first) failure = "some threads of a block are at a barrier or shuffle that others do not come to";
      if (ended || failure) return;
    }
  }
}

template <class... Parameters, size_t... I>
static void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  kernel(*(Parameters*)arguments[I]...);
}

// As cuLaunchKernel takes them: the address of each argument, of `sizes` bytes. Blocks run in order, each after `prepare`.
// Returns what went wrong, or null.
template <class... Parameters>
static const char* launch(
    void (*kernel)(Parameters...), void (*prepare)(), unsigned blocks, unsigned threads, size_t count, const size_t* sizes,
    void** arguments) {
  const size_t expected[] = {sizeof(Parameters)...};
  if (count != sizeof...(Parameters) || memcmp(sizes, expected, sizeof expected)) return "not the kernel's arguments";
  gridDim.x = blocks;
  failure = nullptr;
  for (unsigned block = 0; block < blocks && !failure; block++) {
    auto run_kernel = [&] { call(kernel, arguments, std::index_sequence_for<Parameters...>()); };
    std::thread([&] {
      prepare();
      run_block(block, threads, run_kernel);
    }).join();
  }
  return failure;
}

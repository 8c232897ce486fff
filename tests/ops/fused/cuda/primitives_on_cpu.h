// primitives.cuh on a CPU, where blocks run in order: what a block waits for has been there before it began.
typedef unsigned int word;
typedef unsigned short number;

#if FLOAT16
static float low(word a) {
  const float magnitude = (a & 0x7c00) == 0x7c00 ? __uint_as_float(0x7f800000 | (a & 0x3ff) << 13)
                                                 : __uint_as_float((a & 0x7fff) << 13) * 0x1p112f;
  return a & 0x8000 ? -magnitude : magnitude;
}
static float high(word a) { return low(a >> 16); }
static number narrow(float a) {
  const word bits = __float_as_uint(a), sign = bits >> 16 & 0x8000;
  const float magnitude = fabsf(a);
  if (std::isnan(a)) return 0x7fff;
  if (magnitude >= 65520) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) return sign | (word)nearbyintf(magnitude * 0x1p24f);
  return sign | (__float_as_uint(magnitude) - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
}
#else
static float low(word a) { return __uint_as_float(a << 16); }
static float high(word a) { return __uint_as_float(a & 0xffff0000u); }
static number narrow(float a) {
  const word bits = __float_as_uint(a);
  return std::isnan(a) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif

static uint4 load_once(const number* p) {
  if ((size_t)p % 16) fail("a load of 16 bytes that is not aligned");
  return *(const uint4*)p;
}

static uint4 load_fresh(const number* p) { return load_once(p); }
static thread_local unsigned waited;  // what another block wrote may be read from the round after
static float load_fresh(const float* p) {
  if (!waited || rounds < waited) fail("a load of what the block has not waited for");
  return *p;
}

static int load_kept(const int* p) { return *p; }
static number load_kept(const number* p) { return *p; }

static void prefetch(const number* p) { *(const volatile number*)p; }

// A block signals last of all. Forwards its first thread is the first to come here: what the others have not done is too late.
static void signal(int* counter) {
  ++*counter;
  if (!backwards) end_block();
}
static void wait_for(const int* counter, int count) {
  if (*counter != count) fail("a block waits for what has not come");
  waited = rounds + 1;
}

// A stand-in for the driver of one device, for NVRTC and for cuBLASLt, built once under each of their names. Memory, copies, streams
// and events are real; kernels and products compute nothing, but for the one that adds LoRA files to weights, and memory that is set
// becomes zero, so that an edit gives a black picture.
//
// A stream works as late as it may: its copies happen when somebody waits for it, asks it, or waits for what another has recorded. So
// whoever frees or fills memory too early is found out (`mistakes`).
//
// STAND_IN_FAULT="FUNCTION[|FUNCTION] CODE [SKIP [TIMES]]" has functions fail with a code, after SKIP calls that succeed, TIMES times or
// for ever. A code from 700 to 799 breaks the device: all that is asked of it afterwards fails likewise. STAND_IN_MEMORY="BYTES [NEIGHBOUR AFTER]" is what the device
// has, and what another process takes of it once so many pieces have been taken. The functions at the end do the same for a test
// that is in the same process.

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, NOT_READY = 600, BROKEN = 700, NOT_PERMITTED = 800 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long mistakes, graphs, pinned, uploads;
static char fault[100];
static int fault_code, broken;
static long fault_skip, fault_times = -1;
static size_t total = 80000000000, used, peak, neighbour, neighbour_takes;
static long neighbour_after = -1;

__attribute__((constructor)) static void read_environment(void) {
  const char *of_fault = getenv("STAND_IN_FAULT"), *of_memory = getenv("STAND_IN_MEMORY");
  if (of_fault) sscanf(of_fault, "%99s %d %ld %ld", fault, &fault_code, &fault_skip, &fault_times);
  if (of_memory) sscanf(of_memory, "%zu %zu %ld", &total, &neighbour_takes, &neighbour_after);
}

// The code of the armed fault if it meets a function now; else 0.
static int meets(const char* function) {
  if (broken) return broken;
  size_t length = strlen(function);
  const char* at = strstr(fault, function);
  while (at && !((at == fault || at[-1] == '|') && (at[length] == '|' || !at[length]))) at = strstr(at + 1, function);
  if (!at || fault_skip-- > 0 || fault_times == 0) return 0;
  if (fault_times > 0) fault_times--;
  if (fault_code >= BROKEN && fault_code < NOT_PERMITTED) broken = fault_code;
  return fault_code;
}

#define BEGIN(name)                 \
  pthread_mutex_lock(&lock);        \
  int code = meets(name);           \
  if (code) {                       \
    pthread_mutex_unlock(&lock);    \
    return code;                    \
  }
#define END(value) return pthread_mutex_unlock(&lock), (value)

// ---- memory -------------------------------------------------------------------------------------------------------------------

struct Block {
  char* start;
  size_t bytes;
  int host, lent;  // lent: the process's own memory
  struct Block* next;
};
static struct Block* blocks;

static struct Block* block_of(const void* start, size_t bytes, int host) {
  for (struct Block* b = blocks; b; b = b->next)
    if (b->host == host && (char*)start >= b->start && (char*)start + bytes <= b->start + b->bytes) return b;
  return NULL;
}

static void* take(size_t bytes, int host) {
  struct Block* b = malloc(sizeof *b);
  *b = (struct Block){aligned_alloc(512, (bytes + 511) / 512 * 512), bytes, host, 0, blocks};
  memset(b->start, 0x5a, bytes);
  blocks = b;
  return b->start;
}

static void give(struct Block* gone) {
  struct Block** at = &blocks;
  while (*at != gone) at = &(*at)->next;
  *at = gone->next;
  if (!gone->lent) {
    memset(gone->start, 0xa5, gone->bytes);
    free(gone->start);
  }
  free(gone);
}

static size_t free_bytes(void) { return used + neighbour > total ? 0 : total - used - neighbour; }

// ---- streams ------------------------------------------------------------------------------------------------------------------

struct Event {
  struct Stream* stream;  // that recorded it last
  long asked, come;
  double ms;  // when it came
};

// The device's clock: copies take time, 10 GB/s, and what is recorded a microsecond.
static double now;
static const double BYTES_PER_MS = 1e7, RECORDED = 1e-3;

// The one kernel that computes: w, up, down, y and the table lie at addresses of the device.
struct Sum {
  char *w, *up, *down, *y;
  uint32_t* products;
  uint32_t count, rows, cols, w_stride, up_stride, down_stride, y_stride, unused;
  int of_w, of_factors, rounded, of_y;  // types, as kernels number them
};
static void add_low_rank(const struct Sum* sum);

enum Kind { COPY, SET, RECORD, WAIT, ADD };
struct Op {
  enum Kind kind;
  char *to, *from;
  size_t bytes;
  struct Event* event;
  long count;
  struct Sum* sum;
  struct Op* next;
};
struct Stream {
  struct Op *first, **last;
  int capturing;
  struct Stream* next;
};
static struct Stream* streams;

static void drain(struct Stream* s) {
  while (s->first) {
    struct Op* op = s->first;
    s->first = op->next;
    if (!s->first) s->last = &s->first;
    if (op->kind == WAIT && op->event->come < op->count) drain(op->event->stream);
    if (op->kind == COPY && op->bytes) memmove(op->to, op->from, op->bytes), now += op->bytes / BYTES_PER_MS;
    if (op->kind == ADD) add_low_rank(op->sum), free(op->sum);
    if (op->kind == SET) memset(op->to, 0, op->bytes);
    if (op->kind == RECORD) op->event->come = op->count, op->event->ms = now += RECORDED;
    free(op);
  }
}

static void ask(struct Stream* s, struct Op op) {
  if (s->capturing) return;
  op.next = NULL;
  *s->last = malloc(sizeof op);
  **s->last = op;
  s->last = &(*s->last)->next;
}

// Memory goes: no copy may be under way to it or from it.
static void forget(struct Block* gone) {
  for (struct Stream* s = streams; s; s = s->next)
    for (struct Op* op = s->first; op; op = op->next) {
      char* touched = gone->host ? op->from : op->to;
      if (op->kind > SET || !op->bytes || touched < gone->start || touched >= gone->start + gone->bytes) continue;
      mistakes++;
      op->bytes = 0;
    }
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  BEGIN("cuMemAlloc_v2");
  if (neighbour_after >= 0 && neighbour_after-- == 0) neighbour = neighbour_takes;
  if (bytes > free_bytes()) END(OUT_OF_MEMORY);
  used += bytes;
  if (used > peak) peak = used;
  *address = (uint64_t)take(bytes, 0);
  END(0);
}
int cuMemFree_v2(uint64_t address) {
  BEGIN("cuMemFree_v2");
  struct Block* b = block_of((void*)address, 1, 0);
  if (!b) END(1);
  forget(b);
  used -= b->bytes;
  give(b);
  END(0);
}
int cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
  BEGIN("cuMemHostAlloc");
  pinned++;
  *address = take(bytes, 1);
  END(0);
}
int cuMemFreeHost(void* address) {
  BEGIN("cuMemFreeHost");
  struct Block* b = block_of(address, 1, 1);
  if (!b) END(1);
  forget(b);
  give(b);
  pinned--;
  END(0);
}
int cuMemHostRegister_v2(void* start, size_t bytes, unsigned flags) {
  BEGIN("cuMemHostRegister_v2");
  struct Block* b = malloc(sizeof *b);
  *b = (struct Block){start, bytes, 1, 1, blocks};
  blocks = b;
  pinned++;
  END(0);
}
int cuMemHostUnregister(void* start) {
  BEGIN("cuMemHostUnregister");
  struct Block* b = block_of(start, 1, 1);
  if (!b) END(1);
  forget(b);
  give(b);
  pinned--;
  END(0);
}
int cuMemGetInfo_v2(size_t* free, size_t* all) {
  BEGIN("cuMemGetInfo_v2");
  *free = free_bytes(), *all = total;
  END(0);
}

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  BEGIN("cuMemcpyHtoD_v2");
  if (!block_of((void*)to, bytes, 0)) mistakes++;
  memcpy((void*)to, from, bytes);
  END(0);
}
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  BEGIN("cuMemcpyDtoH_v2");
  if (!block_of((void*)from, bytes, 0)) mistakes++;
  memcpy(to, (void*)from, bytes);
  END(0);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, struct Stream* s) {
  BEGIN("cuMemcpyHtoDAsync_v2");
  if (!block_of((void*)to, bytes, 0) || !block_of(from, bytes, 1)) mistakes++;
  ask(s, (struct Op){COPY, (char*)to, (char*)from, bytes});
  uploads++;
  END(0);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, struct Stream* s) {
  BEGIN("cuMemcpyDtoDAsync_v2");
  ask(s, (struct Op){COPY, (char*)to, (char*)from, bytes});
  END(0);
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, struct Stream* s) {
  BEGIN("cuMemsetD8Async");
  ask(s, (struct Op){SET, (char*)to, NULL, bytes});
  END(0);
}

int cuStreamCreate(struct Stream** stream, unsigned flags) {
  BEGIN("cuStreamCreate");
  struct Stream* s = calloc(1, sizeof *s);
  s->last = &s->first, s->next = streams, streams = *stream = s;
  END(0);
}
int cuStreamDestroy_v2(struct Stream* s) { return 0; }  // what it was asked for is still under way
int cuStreamSynchronize(struct Stream* s) {
  BEGIN("cuStreamSynchronize");
  if (s) drain(s);
  END(0);
}
int cuStreamQuery(struct Stream* s) {
  BEGIN("cuStreamQuery");
  drain(s);
  END(0);
}
int cuStreamWaitEvent(struct Stream* s, struct Event* e, unsigned flags) {
  BEGIN("cuStreamWaitEvent");
  if (e->asked) ask(s, (struct Op){WAIT, .event = e, .count = e->asked});
  END(0);
}
int cuEventCreate(struct Event** event, unsigned flags) {
  BEGIN("cuEventCreate");
  *event = calloc(1, sizeof **event);
  END(0);
}
int cuEventDestroy_v2(struct Event* e) { return 0; }  // an op may still name it
int cuEventRecord(struct Event* e, struct Stream* s) {
  BEGIN("cuEventRecord");
  e->stream = s;
  ask(s, (struct Op){RECORD, .event = e, .count = ++e->asked});
  END(0);
}
int cuEventSynchronize(struct Event* e) {
  BEGIN("cuEventSynchronize");
  if (e->come < e->asked) drain(e->stream);
  END(0);
}
int cuEventQuery(struct Event* e) {
  BEGIN("cuEventQuery");
  if (e->come < e->asked) drain(e->stream);
  END(0);
}
int cuEventElapsedTime(float* ms, struct Event* start, struct Event* end) {
  BEGIN("cuEventElapsedTime");
  if (!start->asked || start->come < start->asked || !end->asked || end->come < end->asked) END(NOT_READY);
  *ms = end->ms - start->ms;
  END(0);
}
int cuEventElapsedTime_v2(float* ms, struct Event* start, struct Event* end) { return cuEventElapsedTime(ms, start, end); }
int cuCtxSynchronize(void) {
  BEGIN("cuCtxSynchronize");
  for (struct Stream* s = streams; s; s = s->next) drain(s);
  END(0);
}

// ---- kernels and graphs: nothing is computed but one ------------------------------------------------------------------------------

static float value(const char* at, int type) {
  if (type == 0) return *(float*)at;
  if (type == 2) return (float)*(_Float16*)at;
  uint32_t bits = (uint32_t)*(uint16_t*)at << 16;
  float wide;
  return memcpy(&wide, &bits, 4), wide;
}
// Finite values, to nearest even.
static void put(char* at, int type, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (type == 0) *(float*)at = x;
  if (type == 1) *(uint16_t*)at = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  if (type == 2) *(_Float16*)at = (_Float16)x;
}
static size_t size_of(int type) { return type == 0 ? 4 : 2; }

static void add_low_rank(const struct Sum* s) {
  size_t w = size_of(s->of_w), f = size_of(s->of_factors), y = size_of(s->of_y);
  int lies = block_of(s->w, s->rows * s->cols * w, 0) && block_of(s->up, s->rows * s->up_stride * f, 0) && block_of(s->products, 20 * s->count, 0);
  if (!lies) {
    mistakes++;
    return;
  }
  for (uint32_t row = 0; row < s->rows; row++)
    for (uint32_t col = 0; col < s->cols; col++) {
      float sum = value(s->w + (row * (size_t)s->w_stride + col) * w, s->of_w);
      for (uint32_t* p = s->products; p < s->products + 5 * s->count; p += 5) {
        if (row < p[0] || row >= p[1]) continue;
        float product = 0, factor = value((char*)(p + 4), 0);
        for (uint32_t k = p[2]; k < p[3]; k++) {
          float up = value(s->up + (row * (size_t)s->up_stride + k) * f, s->of_factors);
          product = fmaf(up, value(s->down + (k * (size_t)s->down_stride + col) * f, s->of_factors), product);
        }
        volatile float scaled = factor * product;
        sum += scaled;
      }
      char rounded[4];
      put(rounded, s->rounded, sum);
      put(s->y + (row * (size_t)s->y_stride + col) * y, s->of_y, value(rounded, s->rounded));
    }
}

int cuModuleLoadData(void** module, const void* image) {
  BEGIN("cuModuleLoadData");
  *module = strdup(image);
  END(0);
}
int cuModuleUnload(void* module) { return 0; }  // a function is its module
int cuModuleGetFunction(void** function, void* module, const char* name) { return *function = module, 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuTensorMapEncodeTiled(void* map, ...) { return memset(map, 0, 128), 0; }
int cuLaunchKernel(const char* function, unsigned gx, unsigned gy, unsigned gz, unsigned x, unsigned y, unsigned z, unsigned shared,
                   struct Stream* s, void** params, void** extra) {
  BEGIN("cuLaunchKernel");
  struct Sum sum;
  if (sscanf(function, "add_low_rank %d %d %d %d", &sum.of_w, &sum.of_factors, &sum.rounded, &sum.of_y) == 4) {
    memcpy(&sum, params[0], offsetof(struct Sum, of_w));
    struct Sum* own = malloc(sizeof sum);
    *own = sum;
    ask(s, (struct Op){ADD, .sum = own});
  }
  END(0);
}
int cuStreamBeginCapture_v2(struct Stream* s, int mode) {
  BEGIN("cuStreamBeginCapture_v2");
  s->capturing = 1;
  END(0);
}
int cuStreamEndCapture(struct Stream* s, void** graph) {
  BEGIN("cuStreamEndCapture");
  s->capturing = 0, graphs++;
  *graph = graph;
  END(0);
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
  BEGIN("cuGraphInstantiateWithFlags");
  *executable = executable;
  END(0);
}
int cuGraphLaunch(void* executable, struct Stream* s) {
  BEGIN("cuGraphLaunch");
  END(0);
}
int cuGraphDestroy(void* graph) { return graphs--, 0; }
int cuGraphExecDestroy(void* executable) { return 0; }

// ---- devices ---------------------------------------------------------------------------------------------------------------------

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) {
  const char* devices = getenv("STAND_IN_DEVICES");
  return *count = devices ? atoi(devices) : 1, 0;
}
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int length, int device) { return strncpy(name, "Stand-in", length), 0; }
int cuDeviceGetPCIBusId(char* text, int length, int device) { return strncpy(text, "0000:00:00.0", length), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 75: return *value = 9, 0;    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    case 76: return *value = 0, 0;    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    case 16: return *value = 132, 0;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
  }
  return 1;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  BEGIN("cuDevicePrimaryCtxRetain");
  *context = context;
  END(0);
}
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuGetErrorName(int code, const char** text) {
  return *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == BROKEN ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR", 0;
}
int cuGetErrorString(int code, const char** text) { return *text = "in words", 0; }

// ---- NVRTC -----------------------------------------------------------------------------------------------------------------------

int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
// A program is what its cubin will be: the name of the source, and its constants for types.
int nvrtcCreateProgram(char** program, const char* text, const char* name, ...) {
  *program = calloc(1, 200);
  snprintf(*program, 100, "%.*s", (int)strcspn(name, "."), name);
  return 0;
}
int nvrtcCompileProgram(char* program, int count, const char* const* options) {
  BEGIN("nvrtcCompileProgram");
  for (int i = 0; i < count; i++) {
    const char* type = strstr(options[i], "_TYPE=");
    if (type && strlen(program) < 190) strcat(strcat(program, " "), type + 6);
  }
  END(0);
}
int nvrtcGetProgramLogSize(void* program, size_t* bytes) { return *bytes = 1, 0; }
int nvrtcGetProgramLog(void* program, char* log) { return *log = 0, 0; }
int nvrtcGetCUBINSize(char* program, size_t* bytes) { return *bytes = strlen(program) + 1, 0; }
int nvrtcGetCUBIN(char* program, char* cubin) { return strcpy(cubin, program), 0; }
int nvrtcDestroyProgram(char** program) { return free(*program), 0; }

// ---- cuBLASLt: three suggestions for every product -------------------------------------------------------------------------------

struct Algorithm {
  uint64_t data[8];
};
struct Suggestion {
  struct Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

size_t cublasLtGetVersion(void) { return 130001; }
int cublasLtCreate(void** handle) {
  BEGIN("cublasLtCreate");
  *handle = handle;
  END(0);
}
int cublasLtDestroy(void* handle) { return 0; }
int cublasLtMatmulDescCreate(void** made, int compute, int scale) { return *made = made, 0; }
int cublasLtMatmulDescDestroy(void* made) { return 0; }
int cublasLtMatmulDescSetAttribute(void* made, int attribute, const void* value, size_t bytes) { return 0; }
int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns, int64_t stride) { return *made = made, 0; }
int cublasLtMatrixLayoutDestroy(void* made) { return 0; }
int cublasLtMatmulPreferenceCreate(void** made) { return *made = made, 0; }
int cublasLtMatmulPreferenceDestroy(void* made) { return 0; }
int cublasLtMatmulPreferenceSetAttribute(void* made, int attribute, const void* value, size_t bytes) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* operation, void* a, void* b, void* c, void* d, void* preference, int most,
                                   struct Suggestion* found, int* count) {
  BEGIN("cublasLtMatmulAlgoGetHeuristic");
  *count = most < 3 ? most : 3;
  for (int i = 0; i < *count; i++) found[i] = (struct Suggestion){.algorithm = {{i + 1}}};
  END(0);
}
int cublasLtMatmulAlgoConfigGetAttribute(const struct Algorithm* algorithm, int attribute, void* value, size_t bytes, size_t* written) {
  uint32_t number = attribute == 0 ? (uint32_t)algorithm->data[0] : 0;
  return memcpy(value, &number, bytes), *written = bytes, 0;
}
int cublasLtMatmul(void* handle, ...) {
  BEGIN("cublasLtMatmul");
  END(0);
}

// ---- for a test in the same process ----------------------------------------------------------------------------------------------

// Arms a fault, and mends the device. What was on a broken one is gone: nobody could give it back.
void stand_in_fault(const char* functions, int code, long skip, long times) {
  pthread_mutex_lock(&lock);
  if (broken) {
    for (struct Stream* s = streams; s; s = s->next) s->first = NULL, s->last = &s->first;
    while (blocks) give(blocks);
    used = pinned = 0;
  }
  snprintf(fault, sizeof fault, "%s", functions);
  fault_code = code, fault_skip = skip, fault_times = times, broken = 0;
  pthread_mutex_unlock(&lock);
}
// The device has so many bytes, and after so many more pieces of memory have been taken, a neighbour takes so many.
void stand_in_memory(size_t all, size_t taken, long after) {
  pthread_mutex_lock(&lock);
  total = all, neighbour = 0, neighbour_takes = taken, neighbour_after = after;
  pthread_mutex_unlock(&lock);
}
// Most bytes of the device's memory that were taken at once since this was asked last.
long stand_in_peak(void) {
  pthread_mutex_lock(&lock);
  long most = peak;
  peak = used;
  END(most);
}
long stand_in_mistakes(void) { return mistakes; }
long stand_in_graphs(void) { return graphs; }
long stand_in_pinned(void) { return pinned; }
long stand_in_uploads(void) { return uploads; }
// The newest piece of the device's memory that has so many bytes.
const char* stand_in_block(size_t bytes) {
  for (struct Block* b = blocks; b; b = b->next)
    if (!b->host && b->bytes == bytes) return b->start;
  return NULL;
}

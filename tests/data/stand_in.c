// What `doctor` asks of a driver with one device, and of cuBLASLt; it computes nothing.

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }

int cuDeviceGetCount(int* count) {
  const char* devices = getenv("STAND_IN_DEVICES");
  return *count = devices ? atoi(devices) : 1, 0;
}

int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int length, int device) { return strncpy(name, "Stand-in", length), 0; }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 75: return *value = 9, 0;    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    case 76: return *value = 0, 0;    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    case 16: return *value = 132, 0;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
  }
  return 1;
}

int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = context, 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = 80000000000, *total = 85000000000, 0; }
int cuModuleLoadData(void** module, const void* image) { return *module = module, 0; }
int cuModuleUnload(void* module) { return 0; }

size_t cublasLtGetVersion(void) { return 130001; }
int cublasLtCreate(void** handle) { return *handle = handle, 0; }
int cublasLtDestroy(void* handle) { return 0; }

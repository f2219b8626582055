// A profiler that hears ranges: it attaches to the program's NVTX tables as nvtxTypes.h says.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef void (*Function)(void);
typedef const void* (*GetExportTable)(uint32_t id);

struct Callbacks {
  size_t bytes;
  int (*module_table)(int module, Function*** table, unsigned* size);
};

struct VersionInfo {
  size_t bytes;
  uint32_t version, reserved;
  void (*set_version)(uint32_t version);
};

static char told[1024];
static int found;

static int push(const char* name) { return strcat(strcat(told, name), "("), 0; }
static int pop(void) { return strcat(told, ")"), 0; }

const char* heard(void) { return told; }
int modules(void) { return found; }

int InitializeInjectionNvtx2(GetExportTable get) {
  const struct VersionInfo* version = get(3);
  if (!version || version->bytes < sizeof *version || version->version != 3 || get(2) || get(7)) return 0;
  version->set_version(3);
  const struct Callbacks* callbacks = get(1);
  if (!callbacks || callbacks->bytes < sizeof *callbacks) return 0;

  static const unsigned sizes[] = {0, 16, 9, 15, 7, 16, 7};
  for (int module = 0; module < 9; module++) {
    Function** table = NULL;
    unsigned size = 0;
    if (!callbacks->module_table(module, &table, &size)) continue;
    if (module < 1 || module > 6 || size != sizes[module] || table[0] || table[size]) return 0;
    for (unsigned slot = 1; slot < size; slot++)
      if (!table[slot] || *table[slot]) return 0;
    found++;
  }
  Function** core = NULL;
  if (!callbacks->module_table(1, &core, NULL)) return 0;
  *core[9] = (Function)push;
  *core[11] = (Function)pop;
  return 1;
}

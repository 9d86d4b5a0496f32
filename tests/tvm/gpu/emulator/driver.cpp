// A GPU that is the CPU: the functions of NVIDIA's driver and runtime that TVM's CUDA runtime calls. Device memory is
// ordinary memory; kernels come from the shared library that EMULATED_KERNELS names, whatever module is loaded.
//
// A kernel NAME is there as `NAME__call(void **arguments)`.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <string>
#include <ucontext.h>
#include <vector>

struct Place { unsigned x, y, z; };
struct Launch { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; };
using Call = void (*)(void **);

extern "C" {
Place cuda_thread, cuda_block;
}

namespace {
constexpr std::size_t kStack = 64 << 10;
ucontext_t scheduler;
std::vector<ucontext_t> fibers;
std::vector<char> stacks, done;
std::size_t current;
Call kernel;
void **arguments;
std::mutex device;

void fiber() {
  kernel(arguments);
  done[current] = 1;
  swapcontext(&fibers[current], &scheduler);
}

Place place(std::size_t i, const unsigned *block) {
  return {unsigned(i % block[0]), unsigned(i / block[0] % block[1]), unsigned(i / block[0] / block[1])};
}

void run_block(const Launch &launch) {
  std::size_t threads = std::size_t(launch.block[0]) * launch.block[1] * launch.block[2], left = threads;
  fibers.resize(threads);
  stacks.resize(threads * kStack);
  done.assign(threads, 0);
  for (std::size_t i = 0; i < threads; ++i) {
    getcontext(&fibers[i]);
    fibers[i].uc_stack.ss_sp = &stacks[i * kStack];
    fibers[i].uc_stack.ss_size = kStack;
    fibers[i].uc_link = nullptr;
    makecontext(&fibers[i], fiber, 0);
  }
  while (left) {
    std::size_t ended = 0;
    for (std::size_t i = 0; i < threads; ++i) {
      // Every other block backwards: where a barrier is missing, one order or the other shows it.
      current = (cuda_block.x + cuda_block.y + cuda_block.z) % 2 ? threads - 1 - i : i;
      cuda_thread = place(current, launch.block);
      swapcontext(&scheduler, &fibers[current]);
      ended += done[current];
    }
    // A barrier that only some threads come to hangs a GPU.
    if (ended && ended != threads) abort();
    left = threads - ended;
  }
}
} // namespace

extern "C" {
void cuda_barrier() { swapcontext(&fibers[current], &scheduler); }

int cuLaunchKernelEx(const Launch *launch, void *function, void **parameters, void **) {
  std::lock_guard<std::mutex> lock(device);
  unsigned threads = launch->block[0] * launch->block[1] * launch->block[2];
  if (threads == 0 || threads > 1024 || launch->grid[1] > 65535 || launch->grid[2] > 65535) return 1;
  kernel = reinterpret_cast<Call>(function);
  arguments = parameters;
  for (cuda_block.z = 0; cuda_block.z < launch->grid[2]; ++cuda_block.z)
    for (cuda_block.y = 0; cuda_block.y < launch->grid[1]; ++cuda_block.y)
      for (cuda_block.x = 0; cuda_block.x < launch->grid[0]; ++cuda_block.x) run_block(*launch);
  return 0;
}
int cuModuleLoadData(void **module, const void *) {
  const char *path = getenv("EMULATED_KERNELS");
  *module = path ? dlopen(path, RTLD_NOW) : nullptr;
  if (!*module) std::fprintf(stderr, "%s\n", dlerror());
  return *module ? 0 : 200;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = dlsym(module, (std::string(name) + "__call").c_str());
  return *function ? 0 : 500;
}
int cuModuleUnload(void *) { return 0; }
int cuFuncSetAttribute(void *, int, int) { return 0; }
int cuDeviceGetName(char *name, int size, int) { std::snprintf(name, size, "emulated"); return 0; }
int cuGetErrorName(int, const char **text) { *text = "error"; return 0; }
int cuGetErrorString(int, const char **text) { *text = "error"; return 0; }
int cuTensorMapEncodeTiled() { return 1; }

int cudaGetDeviceCount(int *count) {
  const char *gpus = getenv("EMULATED_GPUS");
  *count = gpus ? std::stoi(gpus) : 1;
  return 0;
}
int cudaGetDevice(int *number) { *number = 0; return 0; }
int cudaSetDevice(int number) { return number == 0 ? 0 : 101; }
int cudaDeviceGetAttribute(int *value, int attribute, int number) {
  int count;
  cudaGetDeviceCount(&count);
  // "invalid device ordinal"
  if (number >= count) return 101;
  const char *capability = getenv("EMULATED_CAPABILITY");
  std::string text = capability ? capability : "7.5";
  switch (attribute) {
  case 75: *value = std::stoi(text); break;
  case 76: *value = std::stoi(text.substr(text.find('.') + 1)); break;
  case 1: *value = 1024; break;
  default: *value = 32;
  }
  return 0;
}
int cudaGetDeviceProperties(void *, int) { return 1; }
int cudaMalloc(void **memory, std::size_t size) {
  *memory = aligned_alloc(256, (size + 255) / 256 * 256);
  // What nobody wrote is no number.
  std::memset(*memory, 0xff, size);
  return 0;
}
int cudaFree(void *memory) { free(memory); return 0; }
int cudaMallocHost(void **memory, std::size_t size) { return cudaMalloc(memory, size); }
int cudaFreeHost(void *memory) { return cudaFree(memory); }
int cudaMemGetInfo(std::size_t *have, std::size_t *all) { *have = *all = std::size_t(4) << 30; return 0; }
int cudaMemcpyAsync(void *to, const void *from, std::size_t size, int, void *) { std::memcpy(to, from, size); return 0; }
int cudaMemcpyPeerAsync() { return 1; }
int cudaGetLastError() { return 0; }
int cudaPeekAtLastError() { return 0; }
const char *cudaGetErrorString(int) { return "error"; }
const char *cudaGetErrorName(int) { return "error"; }
int cudaEventCreate(void **event) { *event = nullptr; return 0; }
int cudaEventDestroy(void *) { return 0; }
int cudaEventElapsedTime(float *time, void *, void *) { *time = 0; return 0; }
int cudaEventRecord(void *, void *) { return 0; }
int cudaEventSynchronize(void *) { return 0; }
int cudaGraphDestroy() { return 1; }
int cudaGraphExecDestroy() { return 1; }
int cudaGraphInstantiate() { return 1; }
int cudaGraphLaunch() { return 1; }
int cudaStreamBeginCapture() { return 1; }
int cudaStreamEndCapture() { return 1; }
int cudaStreamCreate(void **stream) { *stream = nullptr; return 0; }
int cudaStreamCreateWithFlags(void **stream, unsigned) { *stream = nullptr; return 0; }
int cudaStreamDestroy(void *) { return 0; }
int cudaStreamSynchronize(void *) { return 0; }
int cudaStreamWaitEvent() { return 0; }
}

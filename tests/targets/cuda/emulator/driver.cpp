// A GPU that is the CPU: the functions of NVIDIA's driver and runtime that TVM's CUDA runtime calls.
//
// Device memory is ordinary memory that only copies and kernels may touch; a module is the name of a shared library, in
// which a kernel NAME is there as `NAME__call(void **arguments)`, with `NAME__sizes` of its arguments (to 0) and
// `NAME__bounds`, how many threads it may have.
//
// What a GPU does later is done later: a launch, a copy to the device or to pinned memory waits in its stream until
// somebody synchronizes. Arguments are copied at the launch, pinned memory is read when its turn comes. Stream 0 and the
// others wait for each other, as CUDA's legacy stream does. While a stream captures, launches are only recorded, and
// what CUDA prohibits then fails and spoils the capture.
//
// What a GPU would do wrong in silence ends the process with a word on stderr: see include/checked.h.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#include "include/memory.h"

struct Launch { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; };
using Call = void (*)(void **);

extern "C" {
Place cuda_thread, cuda_block;
State cuda_state;
}

namespace {
enum { kInvalid = 1, kNoMemory = 2, kNoDevice = 101, kNoImage = 200, kNotFound = 500, kNotReady = 600, kIllegalAddress = 700, kLaunchFailure = 719,
       kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureImplicit = 906 };
constexpr std::size_t kStack = 256 << 10, kThreads = 1024;

using Work = std::function<void()>;
struct Graph { std::vector<Work> work; };
struct Stream {
  int device;
  bool blocking;
  std::deque<Work> queue;
  Graph *capture = nullptr;
  bool spoilt = false;
};
// What an event was recorded for last; whoever waits for it waits for that, whatever becomes of the event.
struct Record { Stream *stream; bool done = false; double at = 0; };
struct Event { std::shared_ptr<Record> last; };

std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;
std::map<const char *, Allocation> allocations, pinned;
std::map<int, Stream> legacy;
std::set<Stream *> streams;
thread_local int device;
int sticky;

int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? std::stoi(text) : otherwise;
}

bool inside(const std::map<const char *, Allocation> &table, const void *at) {
  auto found = table.upper_bound(static_cast<const char *>(at));
  return found != table.begin() && static_cast<const char *>(at) < (--found)->first + found->second.size;
}

// With EMULATED_TIMES=launch=5,copy=900,NAME=2,=1 the device has a clock of its own: microseconds of a launch that is in no
// graph (or of a graph), of a copy between host and device, and of a kernel, by the first NAME that is a part of its name.
double planted;
double microseconds(const std::string &name) {
  static const std::vector<std::pair<std::string, double>> table = [] {
    std::vector<std::pair<std::string, double>> found;
    std::string text = getenv("EMULATED_TIMES");
    for (std::size_t from = 0, to; from < text.size(); from = to + 1) {
      to = std::min(text.find(',', from), text.size());
      std::size_t middle = text.find('=', from);
      found.emplace_back(text.substr(from, middle - from), std::stod(text.substr(middle + 1, to - middle - 1)));
    }
    return found;
  }();
  for (auto &each : table)
    if (name.find(each.first) != std::string::npos) return each.second;
  return 0;
}
void spend(const std::string &name) {
  if (getenv("EMULATED_TIMES")) planted += microseconds(name);
}
double milliseconds() {
  if (getenv("EMULATED_TIMES")) return planted / 1e3;
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void drain(Stream &stream) {
  while (!stream.queue.empty()) {
    Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    work();
  }
}
// What was asked for before an event was recorded, and no more.
void drain(Record &record) {
  while (!record.done && !record.stream->queue.empty()) {
    Work work = std::move(record.stream->queue.front());
    record.stream->queue.pop_front();
    work();
  }
}
void drain_all() {
  for (auto &each : legacy) drain(each.second);
  for (Stream *each : streams) drain(*each);
}
bool capturing() {
  return std::any_of(streams.begin(), streams.end(), [](Stream *each) { return each->capture; });
}
// What may not be called while any stream captures: it spoils the capture.
bool prohibited() {
  bool any = false;
  for (Stream *each : streams)
    if (each->capture) each->spoilt = any = true;
  return any;
}
Stream &stream_of(void *handle) {
  if (handle) return *static_cast<Stream *>(handle);
  return legacy.try_emplace(device, Stream{device, true, {}}).first->second;
}
int put(void *handle, Work work) {
  Stream &stream = stream_of(handle);
  if (stream.capture) {
    if (stream.spoilt) return kCaptureInvalidated;
    stream.capture->work.push_back(std::move(work));
    return 0;
  }
  if (!handle && prohibited()) return kCaptureImplicit;
  if (stream.blocking) {
    if (handle) drain(stream_of(nullptr));
    else
      for (Stream *each : streams)
        if (each->blocking && each->device == stream.device) drain(*each);
  }
  stream.queue.push_back(std::move(work));
  // Who forgets to wait is wrong where another stream is late, or where it is early.
  if (!stream.blocking && number("EMULATED_EAGER", 0)) drain(stream);
  return sticky;
}

ucontext_t scheduler;
std::vector<ucontext_t> fibers(kThreads);
std::vector<char> done(kThreads);
char *stacks;
std::size_t current, exchanging;
Call kernel;
void **arguments;

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
  if (!stacks)
    stacks = static_cast<char *>(
        mmap(nullptr, kThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  std::fill(done.begin(), done.end(), 0);
  for (std::size_t i = 0; i < threads; ++i) {
    getcontext(&fibers[i]);
    fibers[i].uc_stack.ss_sp = stacks + i * kStack;
    fibers[i].uc_stack.ss_size = kStack;
    fibers[i].uc_link = nullptr;
    makecontext(&fibers[i], fiber, 0);
  }
  cuda_state.block_begin = cuda_state.epoch + 1;
  while (left) {
    std::size_t ended = 0;
    if (!exchanging) ++cuda_state.epoch;
    exchanging = 0;
    for (std::size_t i = 0; i < threads; ++i) {
      // Every other block backwards: where a barrier is missing, one order or the other shows it.
      current = (cuda_block.x + cuda_block.y + cuda_block.z) % 2 ? threads - 1 - i : i;
      cuda_thread = place(current, launch.block);
      cuda_state.thread = current;
      swapcontext(&scheduler, &fibers[current]);
      ended += done[current];
    }
    if (exchanging && exchanging != threads) cuda_fail("only some threads of the block come to a matrix, or a vote", nullptr);
    if (ended && ended != threads) cuda_fail("a barrier that only some threads come to, which hangs a GPU", nullptr);
    left = threads - ended;
  }
}

void run(const Launch &launch, Call function, const char *name, std::vector<std::vector<char>> &copies, int where) {
  std::vector<void *> pointers;
  for (auto &copy : copies) pointers.push_back(copy.data());
  kernel = function;
  arguments = pointers.data();
  cuda_state.kernel = name;
  cuda_state.device = where;
  cuda_state.dynamic = launch.shared;
  cuda_state.launch_begin = cuda_state.epoch + 1;
  cuda_state.block = 0;
  for (cuda_block.z = 0; cuda_block.z < launch.grid[2]; ++cuda_block.z)
    for (cuda_block.y = 0; cuda_block.y < launch.grid[1]; ++cuda_block.y)
      for (cuda_block.x = 0; cuda_block.x < launch.grid[0]; ++cuda_block.x, ++cuda_state.block) run_block(launch);
}
struct Function { Call call; const int *sizes; int bounds; std::string name; unsigned shared; };
constexpr int kDynamicShared = 8;
constexpr unsigned kUnasked = 48 << 10, kMostShared = 227 << 10;
} // namespace

extern "C" {
void cuda_barrier() { swapcontext(&fibers[current], &scheduler); }
void cuda_exchange() {
  ++exchanging;
  cuda_barrier();
}

void cuda_fail(const char *what, const void *at) {
  std::fprintf(stderr, "emulated GPU: kernel %s, block (%u, %u, %u), thread %u, address %p: %s\n", cuda_state.kernel,
               cuda_block.x, cuda_block.y, cuda_block.z, cuda_state.thread, at, what);
  std::fflush(stderr);
  _Exit(66);
}

Allocation *cuda_find(const void *at) {
  auto found = allocations.upper_bound(static_cast<const char *>(at));
  return found == allocations.begin() ? nullptr : &(--found)->second;
}

int cuLaunchKernelEx(const Launch *launch, Function *function, void **parameters, void **) {
  // So that other threads come to call something while one records a graph.
  if (int wait = number("EMULATED_DELAY", 0)) usleep(wait);
  Guard guard(lock);
  unsigned threads = launch->block[0] * launch->block[1] * launch->block[2];
  if (threads == 0 || threads > kThreads || launch->block[2] > 64) return kInvalid;
  if (launch->grid[1] > 65535 || launch->grid[2] > 65535 || launch->grid[0] == 0) return kInvalid;
  if (int(threads) > function->bounds || launch->shared > function->shared) return kInvalid;
  if (const char *name = getenv("EMULATED_FAULT"))
    if (function->name.find(name) != std::string::npos) sticky = kIllegalAddress;
  if (sticky) return sticky;
  std::vector<std::vector<char>> copies;
  for (int i = 0; function->sizes[i]; ++i) {
    const char *from = static_cast<const char *>(parameters[i]);
    copies.emplace_back(from, from + function->sizes[i]);
  }
  bool alone = !stream_of(launch->stream).capture;
  return put(launch->stream, [launch = *launch, function, copies, where = device, alone]() mutable {
    if (alone) spend("launch");
    spend(function->name);
    run(launch, function->call, function->name.c_str(), copies, where);
  });
}
int cuModuleLoadData(void **module, const void *data) {
  std::string path(static_cast<const char *>(data));
  path = path.substr(0, path.find('\n'));
  *module = dlopen(path.c_str(), RTLD_NOW);
  if (!*module) std::fprintf(stderr, "%s\n", dlerror());
  return *module ? 0 : kNoImage;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  std::string text(name);
  Call call = reinterpret_cast<Call>(dlsym(module, (text + "__call").c_str()));
  if (!call) return kNotFound;
  const int *sizes = static_cast<const int *>(dlsym(module, (text + "__sizes").c_str()));
  const int *bounds = static_cast<const int *>(dlsym(module, (text + "__bounds").c_str()));
  *function = new Function{call, sizes, *bounds, text, kUnasked};
  return 0;
}
int cuModuleUnload(void *) { return 0; }
int cuFuncSetAttribute(Function *function, int attribute, int value) {
  if (attribute != kDynamicShared) return 0;
  if (value < 0 || unsigned(value) > kMostShared) return kInvalid;
  function->shared = value;
  return 0;
}
int cuDeviceGetName(char *name, int size, int) { std::snprintf(name, size, "emulated"); return 0; }
int cuGetErrorName(int, const char **text) { *text = "error"; return 0; }
int cuGetErrorString(int, const char **text) { *text = "error"; return 0; }
int cuTensorMapEncodeTiled() { return kInvalid; }
int cuDriverGetVersion(int *version) { *version = number("EMULATED_DRIVER", 13000); return 0; }

int cudaGetDeviceCount(int *count) { *count = number("EMULATED_GPUS", 1); return 0; }
int cudaGetDevice(int *found) { *found = device; return 0; }
int cudaSetDevice(int wanted) {
  if (wanted < 0 || wanted >= number("EMULATED_GPUS", 1)) return kNoDevice;
  device = wanted;
  return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int which) {
  if (which < 0 || which >= number("EMULATED_GPUS", 1)) return kNoDevice;
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
int cudaGetDeviceProperties(void *, int) { return kInvalid; }
int cudaMemGetInfo(std::size_t *, std::size_t *);
int cudaMalloc(void **memory, std::size_t size) {
  Guard guard(lock);
  if (prohibited()) return kCaptureUnsupported;
  std::size_t have, all;
  cudaMemGetInfo(&have, &all);
  if (size > have) return kNoMemory;
  *memory = aligned_alloc(256, (size + 255) / 256 * 256 + 256);
  // What nobody wrote is no number.
  std::memset(*memory, 0xff, size);
  char *base = static_cast<char *>(*memory);
  allocations[base] = Allocation{base, size, device, {}, {}};
  return sticky;
}
int cudaFree(void *memory) {
  Guard guard(lock);
  if (!memory) return 0;
  if (prohibited()) return kCaptureUnsupported;
  drain_all();
  if (!allocations.erase(static_cast<char *>(memory))) cuda_fail("memory is freed that is none of the device", memory);
  free(memory);
  return sticky;
}
int cudaMallocHost(void **memory, std::size_t size) {
  Guard guard(lock);
  if (prohibited()) return kCaptureUnsupported;
  *memory = aligned_alloc(256, (size + 255) / 256 * 256);
  pinned[static_cast<char *>(*memory)] = Allocation{static_cast<char *>(*memory), size, -1, {}, {}};
  return 0;
}
int cudaFreeHost(void *memory) {
  Guard guard(lock);
  if (prohibited()) return kCaptureUnsupported;
  drain_all();
  pinned.erase(static_cast<char *>(memory));
  free(memory);
  return 0;
}
int cudaMemGetInfo(std::size_t *have, std::size_t *all) {
  Guard guard(lock);
  *have = *all = std::size_t(number("EMULATED_MEMORY", 4 << 20)) << 10;
  for (auto &each : allocations)
    if (each.second.device == device) *have -= std::min(*have, each.second.size);
  return 0;
}
int cudaMemcpyAsync(void *to, const void *from, std::size_t size, int kind, void *stream) {
  Guard guard(lock);
  bool to_device = kind == 1 || kind == 3, from_device = kind == 2 || kind == 3;
  if (to_device != inside(allocations, to) || from_device != inside(allocations, from)) return kInvalid;
  auto fits = [&](const void *at) { Allocation *found = cuda_find(at); return static_cast<const char *>(at) + size <= found->base + found->size; };
  if ((to_device && !fits(to)) || (from_device && !fits(from))) return kInvalid;
  if (stream_of(stream).capture && kind != 3) {
    prohibited();
    return kCaptureUnsupported;
  }
  if (kind == 1 && !inside(pinned, from)) {
    std::vector<char> staged(static_cast<const char *>(from), static_cast<const char *>(from) + size);
    return put(stream, [to, staged] { spend("copy"); std::memcpy(to, staged.data(), staged.size()); });
  }
  int result = put(stream, [to, from, size, kind] {
    if (kind != 3) spend("copy");
    std::memcpy(to, from, size);
  });
  if (kind == 2 && !inside(pinned, to)) drain(stream_of(stream));
  return result;
}
int cudaMemcpyPeerAsync() { return kInvalid; }
int cudaGetLastError() { return sticky; }
int cudaPeekAtLastError() { return sticky; }
const char *cudaGetErrorString(int code) { return code == kNoMemory ? "out of memory" : "error"; }
const char *cudaGetErrorName(int) { return "error"; }

int cudaEventCreate(Event **event) { *event = new Event; return 0; }
int cudaEventCreateWithFlags(Event **event, unsigned) { return cudaEventCreate(event); }
int cudaEventDestroy(Event *event) { delete event; return 0; }
int cudaEventRecord(Event *event, void *stream) {
  Guard guard(lock);
  auto record = std::make_shared<Record>(Record{&stream_of(stream)});
  event->last = record;
  return put(stream, [record] { record->done = true; record->at = milliseconds(); });
}
int cudaEventQuery(Event *event) {
  Guard guard(lock);
  if (prohibited()) return kCaptureUnsupported;
  return event->last && !event->last->done ? kNotReady : sticky;
}
int cudaEventSynchronize(Event *event) {
  Guard guard(lock);
  if (prohibited()) return kCaptureUnsupported;
  if (event->last) drain(*event->last);
  return sticky;
}
int cudaEventElapsedTime(float *time, Event *from, Event *to) {
  *time = float(to->last->at - from->last->at);
  return sticky;
}

int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
  Guard guard(lock);
  Stream *made = new Stream{device, flags == 0, {}};
  streams.insert(made);
  *stream = made;
  return 0;
}
int cudaStreamCreate(void **stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(Stream *stream) {
  Guard guard(lock);
  drain(*stream);
  streams.erase(stream);
  delete stream;
  return 0;
}
int cudaStreamSynchronize(void *stream) {
  Guard guard(lock);
  if (prohibited()) return kCaptureUnsupported;
  Stream &found = stream_of(stream);
  drain(found);
  if (!stream) drain_all();
  return sticky;
}
int cudaStreamWaitEvent(void *stream, Event *event, unsigned) {
  Guard guard(lock);
  return put(stream, [record = event->last] { if (record) drain(*record); });
}
int cudaStreamBeginCapture(Stream *stream, int) {
  Guard guard(lock);
  // The legacy stream cannot be captured.
  if (!stream || stream->capture) return kCaptureUnsupported;
  stream->capture = new Graph;
  stream->spoilt = false;
  return 0;
}
int cudaStreamEndCapture(Stream *stream, Graph **graph) {
  Guard guard(lock);
  *graph = stream->spoilt ? nullptr : stream->capture;
  if (stream->spoilt) delete stream->capture;
  stream->capture = nullptr;
  return *graph ? 0 : kCaptureInvalidated;
}
int cudaGraphInstantiate(Graph **exec, Graph *graph) {
  if (!graph) return kInvalid;
  *exec = new Graph(*graph);
  if (number("EMULATED_NO_GRAPHS", 0)) return kInvalid;
  return 0;
}
int cudaGraphLaunch(Graph *exec, void *stream) {
  Guard guard(lock);
  if (const char *path = getenv("EMULATED_LOG")) {
    FILE *file = std::fopen(path, "a");
    std::fprintf(file, "graph %zu\n", exec->work.size());
    std::fclose(file);
  }
  int result = put(stream, [] { spend("launch"); });
  for (Work &work : exec->work) result = put(stream, work);
  return result;
}
int cudaGraphDestroy(Graph *graph) { delete graph; return 0; }
int cudaGraphExecDestroy(Graph *exec) {
  Guard guard(lock);
  drain_all();
  delete exec;
  return 0;
}
}

// What the driver and the kernels know of memory, and of who runs.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

struct Place { unsigned x, y, z; };

// Who touched a piece of memory last: in which stretch between two barriers, in which block of the launch, and in which
// thread of it; kSeveral for readers, kAtomic where all that touched it since the last barrier did so atomically.
// With the thread stands how often it had waited for its warp, which `waits` counts in State.
struct Cell { std::uint32_t epoch, block, thread; };
constexpr std::uint32_t kSeveral = ~0u, kAtomic = ~1u, kThreadBits = 10;

// Memory of a device. Its cells, of two bytes each, are made when they are first wanted.
struct Allocation {
  char *base;
  std::size_t size;
  int device;
  std::vector<Cell> writers, readers;
};

// Epochs are counted through all launches; one begins with a block, and with each barrier.
struct State {
  std::uint32_t epoch, launch_begin, block_begin, block, thread;
  int device;
  const char *kernel;
  // Bytes of shared memory that the launch asked for.
  unsigned dynamic;
  std::uint32_t waits[1 << kThreadBits];
};

extern "C" {
extern Place cuda_thread, cuda_block;
extern State cuda_state;
void cuda_barrier();
// Goes on when all threads of the block are here, and orders no accesses.
void cuda_exchange();
[[noreturn]] void cuda_fail(const char *what, const void *at);
// The allocation that begins before an address, or at it.
Allocation *cuda_find(const void *at);
}

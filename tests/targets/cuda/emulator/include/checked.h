// Pointers of kernels that look at every access: what compute-sanitizer does for GPUs.
//
//   memcheck    global memory: inside of what one cudaMalloc gave, and of the launch's device; shared memory: of the
//               array; vectors: on a multiple of their size
//   racecheck   two threads and one place, at least one of them writing, with no barrier between; in global memory no
//               barrier orders blocks
//   initcheck   shared memory that no thread of the block has written; a thread's own that it has not written
//
// A thread's own arrays are looked at as shared ones are: what lies outside of them, or is not aligned, is a register on
// a GPU, or another array.
//
// emulation.py puts them in place of the parameters, the shared arrays and the threads' own ones of a kernel. A function
// that a kernel calls sees all of this where it takes pointers by template; where it takes a T*, it gets the address.
#pragma once
#include "memory.h"

#include <algorithm>
#include <type_traits>

inline bool same_block(const Cell &cell) { return cell.block == cuda_state.block; }
inline std::uint32_t thread_of(const Cell &cell) { return cell.thread & ((1u << kThreadBits) - 1); }
inline Cell this_thread() {
  std::uint32_t waits = cuda_state.waits[cuda_state.thread];
  return {cuda_state.epoch, cuda_state.block, waits << kThreadBits | cuda_state.thread};
}
inline bool is_other(const Cell &cell) {
  return !same_block(cell) || cell.thread >= kAtomic || thread_of(cell) != cuda_state.thread;
}
// Whether the warp's threads have waited for each other since.
inline bool waited(const Cell &cell) {
  return cell.thread < kAtomic && thread_of(cell) / 32 == cuda_state.thread / 32 &&
         cell.thread >> kThreadBits != this_thread().thread >> kThreadBits;
}
// Nothing orders it with what happens now; `begin` is where what is older does not count.
inline bool is_race(const Cell &cell, std::uint32_t begin) {
  return cell.epoch >= begin && is_other(cell) && (!same_block(cell) || (cell.epoch == cuda_state.epoch && !waited(cell)));
}
inline void note_write(Cell &writer, const Cell &reader, std::uint32_t begin, const void *at) {
  if (is_race(writer, begin)) cuda_fail("it is written here, and in another thread, with no barrier between", at);
  if (is_race(reader, begin)) cuda_fail("it is written here, and read in another thread, with no barrier between", at);
  writer = this_thread();
}
inline void note_read(const Cell &writer, Cell &reader, std::uint32_t begin, const void *at) {
  if (is_race(writer, begin)) cuda_fail("it is read here, and written in another thread, with no barrier between", at);
  Cell now = this_thread();
  if (reader.epoch >= begin && !same_block(reader)) now.block = kSeveral;
  else if (reader.epoch == now.epoch && is_other(reader) && !waited(reader)) now.thread = kSeveral;
  reader = now;
}

// In shared memory; only others of the kind may touch it until the next barrier.
inline void note_atomic(Cell &writer, const Cell &reader, std::uint32_t begin, const void *at) {
  if (writer.epoch < begin) cuda_fail("shared memory is added to that nobody has written", at);
  if ((writer.thread != kAtomic && is_race(writer, begin)) || is_race(reader, begin))
    cuda_fail("it is added to here, and touched in another thread, with no barrier between", at);
  writer = {cuda_state.epoch, cuda_state.block, kAtomic};
}

struct Global {
  Allocation *memory;
  void touch(const char *at, std::size_t size, bool write) const {
    if (!memory || at < memory->base || at + size > memory->base + memory->size)
      cuda_fail(write ? "a write outside of the memory" : "a read outside of the memory", at);
    if (memory->writers.empty()) {
      memory->writers.resize(memory->size / 2 + 1);
      memory->readers.resize(memory->size / 2 + 1);
    }
    std::size_t first = at - memory->base;
    // Bytes of one cell may belong to two threads.
    if (size < 2) return;
    for (std::size_t cell = first / 2; cell < (first + size) / 2; ++cell)
      if (write) note_write(memory->writers[cell], memory->readers[cell], cuda_state.launch_begin, at);
      else note_read(memory->writers[cell], memory->readers[cell], cuda_state.launch_begin, at);
  }
};
// 16 bytes of shared memory, as what is no thread sees them: see warpgroups.h.
struct Chunk {
  std::uint32_t block = 0, pending = 0, written = 0;
  // The copy of the engine's that brought them: where it is waited for, and the number it has there.
  const void *place = nullptr;
  std::uint32_t phase = 0;
};
void note_chunk(Chunk &chunk);
struct Block {
  char *base;
  std::size_t size;
  Cell *writers, *readers;
  Chunk *chunks = nullptr;
  Chunk &chunk(const char *at) const {
    Chunk &found = chunks[(at - base) / 16];
    if (found.block != cuda_state.block_begin) found = {cuda_state.block_begin};
    return found;
  }
  // Copies that begin, or have come to an end.
  void pend(const char *at, int by) const {
    if (chunks) chunk(at).pending += by;
  }
  void touch(const char *at, std::size_t size, bool write) const {
    if (at < base || at + size > base + this->size)
      cuda_fail(write ? "a write outside of the shared array" : "a read outside of the shared array", at);
    if (chunks && write)
      for (const char *each = at - (at - base) % 16; each < at + size; each += 16) note_chunk(chunk(each));
    for (std::size_t cell = (at - base) / 2; cell < (at - base + size + 1) / 2; ++cell) {
      if (write) {
        note_write(writers[cell], readers[cell], cuda_state.block_begin, at);
        continue;
      }
      if (writers[cell].epoch < cuda_state.block_begin) cuda_fail("shared memory is read that nobody has written", at);
      note_read(writers[cell], readers[cell], cuda_state.block_begin, at);
    }
  }
};

struct Own {
  char *base;
  std::size_t size;
  bool *written;
  void touch(const char *at, std::size_t size, bool write) const {
    if (at < base || at + size > base + this->size)
      cuda_fail(write ? "a write outside of the thread's array" : "a read outside of the thread's array", at);
    for (std::size_t byte = at - base; byte < at - base + size; ++byte)
      if (write) written[byte] = true;
      else if (!written[byte]) cuda_fail("a thread reads its own memory, which it has not written", at);
  }
};

// A place in memory: what `p[i]` and `*p` are.
template <typename T, typename Memory> struct Ref {
  Memory memory;
  T *at;
  operator T() const {
    memory.touch(reinterpret_cast<const char *>(at), sizeof(T), false);
    return *at;
  }
  const Ref &operator=(const T &value) const {
    memory.touch(reinterpret_cast<const char *>(at), sizeof(T), true);
    *at = value;
    return *this;
  }
  const Ref &operator=(const Ref &other) const { return *this = T(other); }
  Ref(const Memory &memory, T *at) : memory(memory), at(at) {
    if (reinterpret_cast<std::uintptr_t>(at) % alignof(T)) cuda_fail("a vector that is not aligned", at);
  }
  Ref(const Ref &) = default;
  auto operator&() const;
};

template <typename T, typename Memory> struct Pointer {
  Memory memory;
  T *at;
  template <typename I> Pointer operator+(I offset) const { return {memory, at + offset}; }
  template <typename I> Ref<T, Memory> operator[](I offset) const { return {memory, at + offset}; }
  Ref<T, Memory> operator*() const { return {memory, at}; }
  // To what is not looked at: all of it may be written there.
  operator T *() const {
    static_assert(std::is_same_v<Memory, Own>, "memory that threads share is looked at");
    memory.touch(reinterpret_cast<const char *>(at), sizeof(T), true);
    std::fill_n(memory.written, memory.size, true);
    return at;
  }
};
template <typename T, typename Memory> auto Ref<T, Memory>::operator&() const { return ::Pointer<T, Memory>{memory, at}; }

// A parameter of a kernel.
template <typename T> struct Parameter : Pointer<T, Global> {
  Parameter(T *at) : Pointer<T, Global>{{cuda_find(at)}, at} {
    if (this->memory.memory && this->memory.memory->device != cuda_state.device)
      cuda_fail("memory of another device", at);
  }
};

// A shared array.
template <typename T, std::size_t N> struct Shared {
  alignas(128) T data[N];
  Cell writers[(N * sizeof(T) + 1) / 2], readers[(N * sizeof(T) + 1) / 2];
  template <typename I> Pointer<T, Block> operator+(I offset) {
    return {{reinterpret_cast<char *>(data), sizeof(data), writers, readers}, data + offset};
  }
  template <typename I> Ref<T, Block> operator[](I offset) { return *(*this + offset); }
};

// The shared array of which a launch says how large it is.
template <typename T> struct Dynamic {
  static constexpr std::size_t kMost = 227 << 10;
  alignas(1024) char data[kMost];
  Cell writers[kMost / 2], readers[kMost / 2];
  Chunk chunks[kMost / 16];
  template <typename I> Pointer<T, Block> operator+(I offset) {
    return {{data, cuda_state.dynamic, writers, readers, chunks}, reinterpret_cast<T *>(data) + offset};
  }
  template <typename I> Ref<T, Block> operator[](I offset) { return *(*this + offset); }
};

// An array of a thread.
template <typename T, std::size_t N> struct Local {
  alignas(64) T data[N];
  bool written[N * sizeof(T)] = {};
  Pointer<T, Own> pointer() { return {{reinterpret_cast<char *>(data), sizeof(data), written}, data}; }
  template <typename I> Pointer<T, Own> operator+(I offset) { return pointer() + offset; }
  template <typename I> Ref<T, Own> operator[](I offset) { return pointer()[offset]; }
  operator T *() { return pointer(); }
};

// `(float4*)`: a vector in checked memory, or elsewhere.
template <typename U> struct Vector {
  template <typename T, typename Memory> static auto at(const Pointer<T, Memory> &from) {
    return Pointer<U, Memory>{from.memory, reinterpret_cast<U *>(from.at)};
  }
  template <typename T> static U *at(T *from) {
    if (reinterpret_cast<std::uintptr_t>(from) % alignof(U)) cuda_fail("a vector that is not aligned", from);
    return reinterpret_cast<U *>(from);
  }
};

// What the schedules' own functions (dnc/tvm/gpu/schedules/helpers.py) want of a GPU besides the language.
#pragma once
#include "checked.h"

#include <cstring>
#include <deque>
#include <functional>
#include <vector>

// All warps of a block come to it, but only what one of them does is in order then.
inline void __syncwarp() {
  cuda_exchange();
  ++cuda_state.waits[cuda_state.thread];
}
inline void __threadfence() {}

inline unsigned atomicInc(unsigned *counter, unsigned most) {
  unsigned before = *counter;
  *counter = before >= most ? 0 : before + 1;
  return before;
}
template <typename T> T atomicAdd(Pointer<T, Block> at, T value) {
  Block &memory = at.memory;
  const char *place = reinterpret_cast<const char *>(at.at);
  if (place < memory.base || place + sizeof(T) > memory.base + memory.size)
    cuda_fail("an addition outside of the shared array", place);
  for (std::size_t cell = (place - memory.base) / 2; cell < (place - memory.base + sizeof(T)) / 2; ++cell)
    note_atomic(memory.writers[cell], memory.readers[cell], cuda_state.block_begin, place);
  T before = *at.at;
  *at.at = before + value;
  return before;
}

// Asynchronous copies happen as late as they may: when they are waited for.
#define DNC_ASYNC
struct Copies {
  std::uint32_t launch = 0, block = 0;
  std::deque<std::vector<std::function<void()>>> groups;
  std::vector<std::function<void()>> open;
};
inline Copies &copies() {
  static Copies all[1024];
  Copies &mine = all[cuda_state.thread];
  if (mine.launch != cuda_state.launch_begin || mine.block != cuda_state.block) {
    bool left = !mine.open.empty();
    for (auto &group : mine.groups) left |= !group.empty();
    if (left) cuda_fail("a block before this one ended without waiting for its copies", nullptr);
    mine = {cuda_state.launch_begin, cuda_state.block, {}, {}};
  }
  return mine;
}
template <std::size_t N> struct alignas(N) Bytes { char x[N]; };
template <int N, typename T, typename U> void dnc_copy(Pointer<T, Block> to, Pointer<U, Global> from, bool inside) {
  // From now on, until it is there.
  const char *there = reinterpret_cast<const char *>(to.at);
  to.memory.touch(there, N, true);
  to.memory.pend(there, 1);
  copies().open.push_back([=] {
    Bytes<N> value = {};
    if (inside) value = *Vector<Bytes<N>>::at(from);
    *Vector<Bytes<N>>::at(to) = value;
    to.memory.pend(there, -1);
  });
}
inline void dnc_commit() {
  copies().groups.push_back(std::move(copies().open));
  copies().open.clear();
}
template <int N> void dnc_wait() {
  auto &groups = copies().groups;
  for (; groups.size() > N; groups.pop_front())
    for (auto &copy : groups.front()) copy();
}

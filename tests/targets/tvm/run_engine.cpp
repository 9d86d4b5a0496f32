// Runs an engine of target tvm: run_engine MODEL.so INPUT OUTPUT SIDE...
//
// INPUT has the float32 numbers of one input with these sides; those of all outputs are written to OUTPUT, one after
// the other. Built with tvm_ffi's headers, and linked with libtvm_ffi and the engine's libtvm_runtime; nothing else.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

namespace {

// What the tensor's memory comes from: TVM wants 64 bytes of alignment.
struct Allocator {
  void AllocData(DLTensor* tensor) {
    const std::size_t size = (ffi::GetDataSize(*tensor) + 63) / 64 * 64;
    tensor->data = std::aligned_alloc(64, size);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  try {
    std::vector<int64_t> sides;
    for (int place = 4; place < count; ++place) sides.push_back(std::stoll(arguments[place]));
    const DLDevice cpu{kDLCPU, 0};
    const DLDataType real{kDLFloat, 32, 1};
    ffi::Tensor input = ffi::Tensor::FromNDAlloc(Allocator(), ffi::ShapeView(sides.data(), sides.size()), real, cpu);
    std::ifstream source(arguments[2], std::ios::binary);
    source.read(static_cast<char*>(input.data_ptr()), static_cast<std::streamsize>(4 * input.numel()));
    if (!source) throw std::runtime_error("the input is too short");

    const ffi::Module library = ffi::Module::LoadFromFile(arguments[1]);
    const ffi::Module machine = (*library->GetFunction("vm_load_executable"))().cast<ffi::Module>();
    const int pooled = 2;
    (*machine->GetFunction("vm_initialization"))(static_cast<int>(kDLCPU), 0, pooled);
    const ffi::Array<ffi::Tensor> outputs = (*machine->GetFunction("main"))(input).cast<ffi::Array<ffi::Tensor>>();

    std::ofstream sink(arguments[3], std::ios::binary);
    for (const ffi::Tensor& output : outputs) {
      sink.write(static_cast<const char*>(output.data_ptr()), static_cast<std::streamsize>(4 * output.numel()));
    }
    return sink ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

// What the library of a target has to do: load an engine's model, and run it. Each is one file, backend_NAME.cpp, that
// defines open_NAME; engine.cpp knows which were compiled in by DNC_WITH_NAME.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "dnc.h"

namespace dnc_runtime {

// An array that lies somewhere in memory, in C order.
struct Tensor {
    std::string name;
    dnc_type type = DNC_FLOAT32;
    Shape shape;
    const void* data = nullptr;

    std::size_t bytes() const {
        std::size_t product = type == DNC_UINT8 ? 1 : sizeof(float);
        for (const std::size_t side : shape) product *= side;
        return product;
    }
};

// What one run gave. The arrays last as long as this does, and no other run writes into them.
class Outputs {
public:
    virtual ~Outputs() = default;
    virtual const std::vector<Tensor>& tensors() const = 0;
};

struct OpenOptions {
    int threads = 0;                             // 0: the library's own choice
    bool trust = false;                          // a package's code may run
    std::map<std::string, std::string> options;  // of the target
    std::size_t max_candidates = 0;              // 0: default_candidates
};

// A loaded model. `run` may be called from several threads at once. Everything throws Error with DNC_ERROR_TARGET.
class Backend {
public:
    virtual ~Backend() = default;

    // In its library's words.
    virtual std::string device() const = 0;

    // Runs on the inputs that the engine's Bundle names, whose shapes were checked: `input` first, all of the same
    // batch; they are read where they lie, until this returns. The outputs are in the model's order: Bundle::outputs
    // and the states' successors, whose names need not be right.
    virtual std::unique_ptr<Outputs> run(const std::vector<Tensor>& inputs) = 0;
};

#ifdef DNC_WITH_OPENVINO
std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const OpenOptions& options);
#endif
#ifdef DNC_WITH_TVM
std::unique_ptr<Backend> open_tvm(const Bundle& bundle, const OpenOptions& options);
#endif

}  // namespace dnc_runtime

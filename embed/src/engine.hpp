// An opened engine: the engine folder and the back end that runs its model, from images to results.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.hpp"
#include "bundle.hpp"
#include "decode.hpp"
#include "preprocess.hpp"

namespace dnc_runtime {

// The targets that this library has back ends for, as "openvino, tvm".
const std::string& known_targets();

// What a network with memory has left of the frames of one sequence: dnc/runtime/memory.py in C++. One call has it at a
// time; one that fails leaves it as it was.
class Memory {
public:
    // Nothing, as at first: states are zero.
    void reset() {
        const std::lock_guard<std::mutex> lock(mutex_);
        last_.reset();
    }

private:
    friend class Engine;
    std::mutex mutex_;
    std::unique_ptr<Outputs> last_;  // of the run before, the states' successors among them
};

// All that it has is set when it is made, so any number of threads may use it.
class Engine {
public:
    // Throws Error.
    Engine(Bundle bundle, const OpenOptions& options);

    const Bundle& bundle() const { return bundle_; }
    const std::string& device() const { return device_; }
    dnc_task task() const;

    // What `run` takes and gives; sides of any length are DNC_ANY.
    const std::vector<Tensor>& inputs() const { return inputs_; }
    const std::vector<Tensor>& outputs() const { return outputs_; }

    // The bytes of the first input for an image, without the batch axis; and the input.
    std::size_t prepared_bytes(const Image& image) const;
    void prepare(const Image& image, void* out) const;

    // Runs on inputs by name; states and thresholds that are not given have their defaults. Throws Error if one does
    // not fit. The outputs are as many as outputs(), and in their order.
    std::unique_ptr<Outputs> run(std::vector<Tensor> given) const;

    // Images of a network with memory are frames of the sequence that `memory` is of.
    std::vector<std::vector<Detection>> detect(const std::vector<Image>& images, float confidence, float iou,
                                               Memory& memory) const;
    std::vector<std::vector<Classification>> classify(const std::vector<Image>& images, std::size_t top,
                                                      Memory& memory) const;

    // Whether outputs of `run` are of boxes; throws Error if they are of no classes either.
    bool gives_boxes() const;

    // What the outputs of `run` say of the image at a place in the batch, of which the size alone is looked at.
    std::vector<Detection> boxes_of(const Image& image, std::size_t position, const Outputs& outputs, float confidence,
                                    float iou) const;
    std::vector<Classification> classes_of(std::size_t position, const Outputs& outputs, std::size_t top) const;

private:
    // Is told an image's index, its place in the batch that it ran in, and what that gave.
    using Reader = std::function<void(std::size_t, std::size_t, const Outputs&)>;

    const Preprocessing& preprocessing() const;
    std::size_t batch_end(const std::vector<Image>& images, std::size_t start) const;
    void run_images(const std::vector<Image>& images, float confidence, float iou, Memory& memory,
                    const Reader& read) const;
    Map map_of(const Outputs& outputs, const std::string& name, std::size_t position) const;
    std::vector<Detection> decoded(const Image& image, std::size_t position, const Outputs& outputs, float confidence,
                                   float iou) const;

    Bundle bundle_;
    std::unique_ptr<Backend> backend_;
    std::string device_;
    std::size_t max_candidates_;
    std::vector<Tensor> inputs_;
    std::vector<Tensor> outputs_;
};

}  // namespace dnc_runtime

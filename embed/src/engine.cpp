#include "engine.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <new>
#include <utility>

#include "error.hpp"

namespace dnc_runtime {

namespace {

struct Opener {
    std::string name;
    std::function<std::unique_ptr<Backend>(const Bundle&, const OpenOptions&)> open;
    bool runs_code;  // an engine is machine code
};

const std::vector<Opener>& openers() {
    static const std::vector<Opener> known{
#ifdef DNC_WITH_OPENVINO
        {"openvino", open_openvino, false},
#endif
#ifdef DNC_WITH_TVM
        {"tvm", open_tvm, true},
#endif
    };
    return known;
}

std::unique_ptr<Backend> open(const Bundle& bundle, const OpenOptions& options) {
    for (const Opener& opener : openers()) {
        if (opener.name != bundle.runner) continue;
        if (bundle.packed && opener.runs_code && !options.trust) {
            throw Error(DNC_ERROR_ARGUMENT, "the package holds machine code, which would run with all your rights",
                        bundle.folder, "where you know who made it: trust = 1 in dnc_open_options");
        }
        return bundle.files->opening([&] { return opener.open(bundle, options); });
    }
    throw Error(DNC_ERROR_TARGET, "this library runs no engines of target '" + bundle.target + "'", bundle.folder,
                known_targets().empty()
                    ? "build it with a back end"
                    : "compile the network for one that it runs (`dnc compile --target`): " + known_targets());
}

std::string text_of(const Shape& shape) {
    std::string text;
    for (const std::size_t side : shape) {
        text += (text.empty() ? "" : ", ") + (side == DNC_ANY ? "any" : std::to_string(side));
    }
    return "(" + text + ")";
}

bool fits(const Shape& shape, const Shape& wanted) {
    const auto same = [](std::size_t side, std::size_t want) { return want == DNC_ANY ? side > 0 : side == want; };
    return shape.size() == wanted.size() && std::equal(shape.begin(), shape.end(), wanted.begin(), same);
}

Shape with_batch(std::size_t batch, const Shape& rest) {
    Shape shape{batch};
    shape.insert(shape.end(), rest.begin(), rest.end());
    return shape;
}

// Outputs that a back end gave, under the engine's names.
class NamedOutputs : public Outputs {
public:
    NamedOutputs(std::unique_ptr<Outputs> own, const std::vector<Tensor>& described)
        : own_(std::move(own)), tensors_(own_->tensors()) {
        for (std::size_t index = 0; index < tensors_.size(); ++index) tensors_[index].name = described[index].name;
    }

    const std::vector<Tensor>& tensors() const override { return tensors_; }

private:
    std::unique_ptr<Outputs> own_;
    std::vector<Tensor> tensors_;
};

}  // namespace

const std::string& known_targets() {
    static const std::string names = [] {
        std::string joined;
        for (const Opener& opener : openers()) joined += (joined.empty() ? "" : ", ") + opener.name;
        return joined;
    }();
    return names;
}

Engine::Engine(Bundle bundle, const OpenOptions& options)
    : bundle_(std::move(bundle)), backend_(open(bundle_, options)), device_(backend_->device()),
      max_candidates_(options.max_candidates == 0 ? default_candidates : options.max_candidates) {
    const std::size_t batch = bundle_.batch == 0 ? DNC_ANY : bundle_.batch;
    const Shape pixels{batch, DNC_ANY, DNC_ANY, bundle_.input_shape[0]};
    const Shape input = bundle_.takes_pixels ? pixels : with_batch(batch, bundle_.input_shape);
    inputs_.push_back({"input", bundle_.takes_pixels ? DNC_UINT8 : DNC_FLOAT32, input, nullptr});
    for (const auto& [name, shape] : bundle_.states) {
        inputs_.push_back({name, DNC_FLOAT32, with_batch(batch, shape), nullptr});
    }
    if (bundle_.decode == Bundle::Decode::graph_nms) {
        inputs_.push_back({"confidence", DNC_FLOAT32, {1}, nullptr});
        inputs_.push_back({"iou", DNC_FLOAT32, {1}, nullptr});
        if (bundle_.window) inputs_.push_back({"window", DNC_FLOAT32, {batch, 4}, nullptr});
    }
    for (std::size_t index = 0; index < bundle_.outputs.size(); ++index) {
        // Detections of a whole batch are one list, which has no batch axis.
        const bool listed = bundle_.decode == Bundle::Decode::graph_nms && index == 0;
        outputs_.push_back({bundle_.outputs[index], DNC_FLOAT32,
                            with_batch(listed ? DNC_ANY : batch, bundle_.output_shapes[index]), nullptr});
    }
    for (const auto& [name, shape] : bundle_.states) {
        outputs_.push_back({name, DNC_FLOAT32, with_batch(batch, shape), nullptr});
    }
}

dnc_task Engine::task() const {
    if (!bundle_.preprocessing || bundle_.heads.empty()) return DNC_TASK_ARRAYS;
    return bundle_.box_heads().empty() ? DNC_TASK_CLASSIFY : DNC_TASK_DETECT;
}

const Preprocessing& Engine::preprocessing() const {
    if (!bundle_.preprocessing) {
        throw Error(DNC_ERROR_ARGUMENT, "this network takes no images", bundle_.folder, "use dnc_run");
    }
    return *bundle_.preprocessing;
}

std::size_t Engine::prepared_bytes(const Image& image) const {
    const Preprocessing& p = preprocessing();
    if (bundle_.takes_pixels) return image.width * image.height * p.channels;
    return p.width * p.height * p.channels * sizeof(float);
}

void Engine::prepare(const Image& image, void* out) const {
    if (bundle_.takes_pixels) {
        preprocessing().to_bytes(image, static_cast<std::uint8_t*>(out));
    } else {
        preprocessing()(image, static_cast<float*>(out));
    }
}

std::unique_ptr<Outputs> Engine::run(std::vector<Tensor> given) const {
    for (const Tensor& tensor : given) {
        const auto same = [&tensor](const Tensor& other) { return other.name == tensor.name; };
        if (std::none_of(inputs_.begin(), inputs_.end(), same)) {
            std::string names;
            for (const Tensor& input : inputs_) names += (names.empty() ? "" : ", ") + input.name;
            throw Error(DNC_ERROR_ARGUMENT, "the engine has no input '" + tensor.name + "'", bundle_.folder,
                        "it has " + names);
        }
        if (std::count_if(given.begin(), given.end(), same) > 1) {
            throw Error(DNC_ERROR_ARGUMENT, "input '" + tensor.name + "' is given twice");
        }
    }
    std::vector<Tensor> inputs;
    std::vector<std::vector<float>> defaults;
    for (const Tensor& wanted : inputs_) {
        const auto found = std::find_if(given.begin(), given.end(),
                                        [&wanted](const Tensor& other) { return other.name == wanted.name; });
        if (found == given.end()) {
            if (inputs.empty()) throw Error(DNC_ERROR_ARGUMENT, "input 'input' is missing", bundle_.folder);
            Tensor tensor = wanted;
            if (tensor.shape[0] == DNC_ANY) tensor.shape[0] = inputs[0].shape[0];
            std::vector<float> values(tensor.bytes() / sizeof(float), 0.0f);
            if (wanted.name == "confidence") values[0] = 0.25f;
            if (wanted.name == "iou") values[0] = 0.45f;
            // Boxes as fractions of the network's input.
            for (std::size_t place = 0; wanted.name == "window" && place < values.size(); ++place) {
                values[place] = place % 4 < 2 ? 0.0f : 1.0f;
            }
            defaults.push_back(std::move(values));
            tensor.data = defaults.back().data();
            inputs.push_back(std::move(tensor));
            continue;
        }
        Tensor& tensor = *found;
        const bool batched = inputs.empty() || wanted.name == "confidence" || wanted.name == "iou" ||
                             tensor.shape.empty() || tensor.shape[0] == inputs[0].shape[0];
        if (tensor.type != wanted.type || !fits(tensor.shape, wanted.shape) || !batched) {
            const char* type = wanted.type == DNC_UINT8 ? "uint8" : "float32";
            throw Error(DNC_ERROR_ARGUMENT,
                        "input '" + wanted.name + "' has shape " + text_of(tensor.shape) + ", the engine wants " +
                            text_of(wanted.shape) + " of " + type,
                        bundle_.folder, batched ? "" : "all inputs have the same batch");
        }
        inputs.push_back(std::move(tensor));
    }
    std::unique_ptr<Outputs> outputs = backend_->run(inputs);
    if (outputs->tensors().size() != outputs_.size()) {
        throw Error(DNC_ERROR_TARGET,
                    "the model gives " + std::to_string(outputs->tensors().size()) + " outputs, not " +
                        std::to_string(outputs_.size()),
                    bundle_.folder, "build the engine again");
    }
    return std::make_unique<NamedOutputs>(std::move(outputs), outputs_);
}

// Pixels of different sizes cannot be one array, and frames of a network with memory need what the one before left.
std::size_t Engine::batch_end(const std::vector<Image>& images, std::size_t start) const {
    if (!bundle_.carried.empty()) return start + 1;
    const std::size_t most = bundle_.batch == 0 ? images.size() : std::min(images.size(), start + bundle_.batch);
    if (!bundle_.takes_pixels) return most;
    std::size_t end = start + 1;
    while (end < most && images[end].width == images[start].width && images[end].height == images[start].height) ++end;
    return end;
}

void Engine::run_images(const std::vector<Image>& images, float confidence, float iou, Memory& memory,
                        const Reader& read) const {
    const std::vector<std::string>& carried = bundle_.carried;
    std::unique_lock<std::mutex> alone(memory.mutex_, std::defer_lock);
    if (!carried.empty()) alone.lock();
    std::unique_ptr<Outputs> last;
    for (std::size_t start = 0; start < images.size();) {
        const std::size_t end = batch_end(images, start), size = bundle_.batch == 0 ? end - start : bundle_.batch;
        const std::size_t bytes = prepared_bytes(images[start]);
        Tensor input = inputs_[0];
        input.shape[0] = size;
        if (bundle_.takes_pixels) {
            input.shape[1] = images[start].height;
            input.shape[2] = images[start].width;
        }
        std::unique_ptr<float[]> made;
        if (bundle_.takes_pixels && size == 1 && preprocessing().matches(images[start])) {
            input.data = images[start].data;
        } else {
            if (size > std::numeric_limits<std::size_t>::max() / 2 / bytes) throw std::bad_alloc();
            // Not a vector, which would be filled with zeros first.
            made.reset(new float[(size * bytes + sizeof(float) - 1) / sizeof(float)]);
            auto* out = reinterpret_cast<unsigned char*>(made.get());
            for (std::size_t place = 0; place < size; ++place, out += bytes) {
                if (start + place < end) {
                    prepare(images[start + place], out);
                } else {
                    std::memcpy(out, out - bytes, bytes);
                }
            }
            input.data = made.get();
        }
        std::vector<Tensor> inputs{input};
        std::vector<float> window;
        if (bundle_.decode == Bundle::Decode::graph_nms) {
            inputs.push_back({"confidence", DNC_FLOAT32, {1}, &confidence});
            inputs.push_back({"iou", DNC_FLOAT32, {1}, &iou});
        }
        if (bundle_.window) {
            for (std::size_t place = 0; place < size; ++place) {
                const Image& image = images[std::min(start + place, end - 1)];
                const BoxTransform transform = preprocessing().transform(image.width, image.height);
                for (const double part : transform.offset) window.push_back(static_cast<float>(part));
                for (const double part : transform.ratio) window.push_back(static_cast<float>(part));
            }
            inputs.push_back({"window", DNC_FLOAT32, {size, 4}, window.data()});
        }
        if (const Outputs* before = last ? last.get() : memory.last_.get(); !carried.empty() && before != nullptr) {
            // They are read where they lie.
            std::copy_if(before->tensors().begin(), before->tensors().end(), std::back_inserter(inputs),
                         [&](const Tensor& tensor) {
                             return std::find(carried.begin(), carried.end(), tensor.name) != carried.end();
                         });
        }
        std::unique_ptr<Outputs> outputs = run(std::move(inputs));
        for (std::size_t index = start; index < end; ++index) read(index, index - start, *outputs);
        if (!carried.empty()) last = std::move(outputs);
        start = end;
    }
    if (last) memory.last_ = std::move(last);
}

Map Engine::map_of(const Outputs& outputs, const std::string& name, std::size_t position) const {
    for (const Tensor& tensor : outputs.tensors()) {
        if (tensor.name != name) continue;
        if (tensor.shape.empty() || position >= tensor.shape[0]) break;
        Map map;
        map.shape.assign(tensor.shape.begin() + 1, tensor.shape.end());
        map.data =
            static_cast<const float*>(tensor.data) + position * (tensor.bytes() / sizeof(float) / tensor.shape[0]);
        return map;
    }
    throw Error(DNC_ERROR_TARGET, "output '" + name + "' lacks an image of the batch", bundle_.folder,
                "build the engine again");
}

bool Engine::gives_boxes() const {
    if (bundle_.heads.empty()) {
        throw Error(DNC_ERROR_ARGUMENT, "this network has no head that gives boxes or classes", bundle_.folder,
                    "use dnc_outputs_get, which gives its last layer's output");
    }
    return !bundle_.box_heads().empty();
}

std::vector<Detection> Engine::boxes_of(const Image& image, std::size_t position, const Outputs& outputs,
                                        float confidence, float iou) const {
    std::vector<Detection> found = decoded(image, position, outputs, confidence, iou);
    const auto hidden = [this](const Detection& one) { return bundle_.labels[one.class_id].rfind("dont_show", 0) == 0; };
    found.erase(std::remove_if(found.begin(), found.end(), hidden), found.end());
    return found;
}

std::vector<Classification> Engine::classes_of(std::size_t position, const Outputs& outputs, std::size_t top) const {
    const Head& head = bundle_.heads.back();
    return best_classes(head, map_of(outputs, head.output, position), top);
}

std::vector<Detection> Engine::decoded(const Image& image, std::size_t position, const Outputs& outputs,
                                       float confidence, float iou) const {
    const std::vector<const Head*> heads = bundle_.box_heads();
    BoxTransform transform;
    if (bundle_.preprocessing) transform = bundle_.preprocessing->transform(image.width, image.height);
    const auto wrong = [this](const std::string& what) {
        return Error(DNC_ERROR_TARGET, what + " of another shape than decoding has", bundle_.folder,
                     "build the engine again");
    };
    if (bundle_.decode == Bundle::Decode::graph_nms) {
        const Tensor& rows = outputs.tensors()[0];
        if (rows.shape.size() != 2 || rows.shape[1] != 7) throw wrong("detections");
        return from_suppressed(static_cast<const float*>(rows.data), rows.shape[0], position, bundle_.classes());
    }
    if (bundle_.decode == Bundle::Decode::graph) {
        const Map boxes = map_of(outputs, outputs.tensors()[0].name, position);
        const Map scores = map_of(outputs, outputs.tensors()[1].name, position);
        const Shape wanted{boxes.shape.empty() ? 0 : boxes.shape[0], 4};
        if (boxes.shape != wanted || scores.shape != Shape{wanted[0], bundle_.classes()}) {
            throw wrong("boxes and scores");
        }
        return from_decoded(*heads.back(), boxes.data, scores.data, wanted[0], bundle_.classes(), confidence, iou,
                            max_candidates_, transform);
    }
    std::vector<Map> maps;
    for (const Head* head : heads) maps.push_back(map_of(outputs, head->output, position));
    return detections(heads, maps, confidence, iou, max_candidates_, transform);
}

std::vector<std::vector<Detection>> Engine::detect(const std::vector<Image>& images, float confidence, float iou,
                                                   Memory& memory) const {
    preprocessing();
    if (task() != DNC_TASK_DETECT) {
        throw Error(DNC_ERROR_ARGUMENT, "this network gives no boxes", bundle_.folder, "use dnc_classify or dnc_run");
    }
    std::vector<std::vector<Detection>> results;
    run_images(images, confidence, iou, memory, [&](std::size_t index, std::size_t position, const Outputs& outputs) {
        results.push_back(boxes_of(images[index], position, outputs, confidence, iou));
    });
    return results;
}

std::vector<std::vector<Classification>> Engine::classify(const std::vector<Image>& images, std::size_t top,
                                                          Memory& memory) const {
    preprocessing();
    if (task() != DNC_TASK_CLASSIFY) {
        throw Error(DNC_ERROR_ARGUMENT, "this network gives no classes of the whole image", bundle_.folder,
                    "use dnc_detect or dnc_run");
    }
    std::vector<std::vector<Classification>> results;
    run_images(images, 0, 0, memory, [&](std::size_t, std::size_t position, const Outputs& outputs) {
        results.push_back(classes_of(position, outputs, top));
    });
    return results;
}

}  // namespace dnc_runtime

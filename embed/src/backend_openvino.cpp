// Target openvino: model.xml and model.bin, run by OpenVINO as targets/openvino.py does: the arithmetic of the
// precision that was compiled, fixed shapes for single images, and as many infer requests as run at the same time.

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <mutex>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>
#include <sstream>
#include <utility>

#include "arithmetic.hpp"
#include "backend.hpp"
#include "error.hpp"

namespace dnc_runtime {

namespace {

constexpr const char* again = "build the engine again";

// What OpenVINO has to say, without where in its sources it says so.
std::string reason(const std::exception& error) {
    std::istringstream stream(error.what());
    std::string all, telling;
    for (std::string line; std::getline(stream, line);) {
        const std::size_t first = line.find_first_not_of(" \t\r");
        if (first == std::string::npos) continue;
        line = line.substr(first);
        all += (all.empty() ? "" : " ") + line;
        const auto starts = [&line](const char* with) { return line.rfind(with, 0) == 0; };
        if (starts("Exception from") || starts("Check '") || starts("To facilitate the conversion")) continue;
        telling += (telling.empty() ? "" : " ") + line;
    }
    return telling.empty() ? all : telling;
}

std::string upper(std::string text) {
    for (char& letter : text) letter = static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
    return text;
}

std::string before(const std::string& text, char mark) { return text.substr(0, text.find(mark)); }

// What the target was told: when the engine was built, and now.
class Options {
public:
    Options(const Bundle& bundle, const OpenOptions& given) : bundle_(bundle), given_(given) {
        for (const auto& [name, value] : given.options) {
            const std::string option = name + "=" + value;
            if (name == "precision") {
                throw Error(DNC_ERROR_ARGUMENT, "precision is built into the engine", bundle.folder,
                            "`dnc compile --option " + option + "`");
            }
            if (name != "device" && name != "hint" && name != "cache") {
                throw Error(DNC_ERROR_ARGUMENT, "target openvino has no option '" + name + "'", bundle.folder,
                            "it has device, hint, cache");
            }
        }
    }

    std::string get(const std::string& name, const std::string& fallback) const {
        const auto now = given_.options.find(name);
        if (now != given_.options.end()) return now->second;
        const auto built = bundle_.options.find(name);
        return built == bundle_.options.end() ? fallback : built->second;
    }

    std::string one_of(const std::string& name, const std::vector<std::string>& known) const {
        const std::string value = get(name, known[0]);
        if (std::find(known.begin(), known.end(), value) != known.end()) return value;
        std::string words;
        for (const std::string& word : known) words += (words.empty() ? "" : ", ") + word;
        throw Error(DNC_ERROR_ARGUMENT, "option " + name + "=" + value + " of target openvino is not one of " + words,
                    bundle_.folder);
    }

    // A folder, or nothing: what the engine was built with says on or off, and names none.
    std::string cache() const {
        const auto now = given_.options.find("cache");
        return now == given_.options.end() || now->second == "off" ? "" : now->second;
    }

private:
    const Bundle& bundle_;
    const OpenOptions& given_;
};

// The core of this process, which lives as long as it does: one with the CPU's plugin gives the thread another stack for
// signals, and takes it back as if the last core were always the first to go. Else the next signal of a thread would be
// handled in memory that is free.
ov::Core& shared_core() {
    static auto* const core = new ov::Core;
    return *core;
}

// One compiled model, and those of its infer requests that nobody uses.
class Requests {
public:
    explicit Requests(ov::CompiledModel compiled) : compiled_(std::move(compiled)) {}

    ov::InferRequest take() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!free_.empty()) {
                ov::InferRequest request = std::move(free_.back());
                free_.pop_back();
                return request;
            }
        }
        return compiled_.create_infer_request();
    }

    void give(ov::InferRequest request) noexcept {
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            free_.push_back(std::move(request));
        } catch (const std::bad_alloc&) {
            // Then it is one that is made anew.
            return;
        }
    }

    const ov::CompiledModel& compiled() const { return compiled_; }

private:
    ov::CompiledModel compiled_;
    std::mutex mutex_;
    std::vector<ov::InferRequest> free_;
};

// The outputs lie in the request, which goes back when they are not needed any more.
class OpenvinoOutputs : public Outputs {
public:
    OpenvinoOutputs(std::shared_ptr<Requests> requests, ov::InferRequest request)
        : requests_(std::move(requests)), request_(std::move(request)) {
        for (std::size_t place = 0; place < requests_->compiled().outputs().size(); ++place) {
            const ov::Tensor tensor = request_.get_output_tensor(place);
            if (tensor.get_element_type() != ov::element::f32) {
                throw Error(DNC_ERROR_TARGET, "output " + std::to_string(place) + " of the model is no float32", "",
                            again);
            }
            tensors_.push_back({"", DNC_FLOAT32, tensor.get_shape(), tensor.data()});
        }
    }

    ~OpenvinoOutputs() override { requests_->give(std::move(request_)); }

    const std::vector<Tensor>& tensors() const override { return tensors_; }

private:
    std::shared_ptr<Requests> requests_;
    ov::InferRequest request_;
    std::vector<Tensor> tensors_;
};

class OpenvinoBackend : public Backend {
public:
    OpenvinoBackend(const Bundle& bundle, const OpenOptions& given) : files_(bundle.files), path_(bundle.path("model.xml")) {
        const Options options(bundle, given);
        asked_ = upper(options.get("device", "CPU"));
        config_["PERFORMANCE_HINT"] = upper(options.one_of("hint", {"latency", "throughput"}));
        const std::string precision = options.one_of("precision", {"fp32", "fp16", "bf16", "int8", "mixed"});
        const std::string weights = bundle.path("model.bin");
        try {
            check_device(bundle.folder);
            tell_of_arithmetic(bundle);
            // An NPU has no float32, and chooses by itself.
            if (asked_.rfind("NPU", 0) != 0) config_["INFERENCE_PRECISION_HINT"] = arithmetic(precision);
            const bool counts = asked_.rfind("CPU", 0) == 0 || asked_.rfind("AUTO", 0) == 0;
            if (given.threads > 0 && counts) config_["INFERENCE_NUM_THREADS"] = given.threads;
            if (const std::string cache = options.cache(); !cache.empty()) {
                config_["CACHE_DIR"] = cache;
                // What it compiled of a package has the weights in it, for they are in no file.
                if (!bundle.packed) {
                    config_["CACHE_MODE"] = std::string("OPTIMIZE_SIZE");
                    config_["WEIGHTS_PATH"] = weights;
                }
            }
            read(bundle);
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw Error(DNC_ERROR_TARGET, "OpenVINO refuses the model: " + reason(error), path_, again);
        }
    }

    std::string device() const override { return device_; }

    std::unique_ptr<Outputs> run(const std::vector<Tensor>& inputs) override {
        try {
            const std::shared_ptr<Requests> requests = requests_for(inputs[0].shape[0]);
            // A request that failed is not used again.
            ov::InferRequest request = requests->take();
            for (const Tensor& input : inputs) {
                const std::size_t place = places_.at(input.name);
                const ov::element::Type type = input.type == DNC_UINT8 ? ov::element::u8 : ov::element::f32;
                // OpenVINO does not write into inputs, but has no type for what is only read.
                request.set_input_tensor(place, ov::Tensor(type, input.shape, const_cast<void*>(input.data)));
            }
            request.infer();
            return std::make_unique<OpenvinoOutputs>(requests, std::move(request));
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw Error(DNC_ERROR_TARGET, "OpenVINO failed: " + reason(error), path_);
        }
    }

private:
    // OpenVINO chooses its kernels by the CPU that it finds; its GPUs and NPUs add up 8-bit numbers exactly.
    void tell_of_arithmetic(const Bundle& bundle) const {
        if (asked_.rfind("GPU", 0) == 0 || asked_.rfind("NPU", 0) == 0) return;
        const std::string lost = loss(bundle);
        if (!lost.empty()) std::fprintf(stderr, "dnc: warning: %s\n", lost.c_str());
    }

    void check_device(const std::string& folder) const {
        const std::vector<std::string> available = core_.get_available_devices();
        std::string listing;
        for (const std::string& name : available) listing += (listing.empty() ? "" : ", ") + name;
        const std::string hint = "there is " + listing + "; a GPU or NPU needs its driver";
        const std::size_t colon = asked_.find(':');
        std::istringstream wanted(colon == std::string::npos ? asked_ : asked_.substr(colon + 1));
        for (std::string name; std::getline(wanted, name, ',');) {
            const auto is = [&name](const std::string& other) { return name == other || name == before(other, '.'); };
            if (name != "AUTO" && std::none_of(available.begin(), available.end(), is)) {
                throw Error(DNC_ERROR_TARGET, "OpenVINO sees no device " + name, folder, hint);
            }
        }
    }

    std::string arithmetic(const std::string& precision) const {
        if (precision == "bf16" || precision == "int8") return "bf16";
        if (precision != "fp16") return "f32";
        // Asked for float16 that a CPU has not, OpenVINO takes bfloat16, which has 3 bits less.
        const auto able = core_.get_property(before(asked_, ':'), ov::device::capabilities);
        return std::count(able.begin(), able.end(), "FP16") != 0 ? "f16" : "f32";
    }

    void read(const Bundle& bundle) {
        const std::shared_ptr<ov::Model> model = read_model();
        std::vector<std::string> names{"input"};
        for (const auto& state : bundle.states) names.push_back(state.first);
        if (bundle.decode == Bundle::Decode::graph_nms) names.insert(names.end(), {"confidence", "iou"});
        if (bundle.window) names.push_back("window");
        for (std::size_t place = 0; place < model->inputs().size(); ++place) {
            // A port has several names where an output is an input unchanged; the node has ours.
            places_[model->input(place).get_node()->get_friendly_name()] = place;
        }
        const bool all = std::all_of(names.begin(), names.end(),
                                     [this](const std::string& name) { return places_.count(name) != 0; });
        if (!all || places_.size() != names.size() || model->inputs().size() != names.size()) {
            throw Error(DNC_ERROR_TARGET, "the model's inputs are not those in engine.json", path_, again);
        }
        for (const std::string& name : names) {
            const ov::element::Type wanted =
                name == "input" && bundle.takes_pixels ? ov::element::u8 : ov::element::f32;
            if (model->input(places_[name]).get_element_type() != wanted) {
                throw Error(DNC_ERROR_TARGET, "input " + name + " of the model has another type than engine.json says",
                            path_, again);
            }
        }
        if (model->outputs().size() != bundle.outputs.size() + bundle.states.size()) {
            throw Error(DNC_ERROR_TARGET, "the model's outputs are not those in engine.json", path_, again);
        }
        if (fix_batch(*model)) alone_ = model;
        auto first = std::make_shared<Requests>(compile(alone_ != nullptr));
        for (const std::string& each : first->compiled().get_property(ov::execution_devices)) {
            device_ += (device_.empty() ? "" : ", ") + each;
        }
        (alone_ != nullptr ? one_ : any_) = std::move(first);
    }

    // Fixes the batch of a model at 1, if that is all that is free in its inputs.
    static bool fix_batch(ov::Model& model) {
        std::map<std::size_t, ov::PartialShape> fixed;
        bool free = false;
        for (std::size_t place = 0; place < model.inputs().size(); ++place) {
            ov::PartialShape shape = model.input(place).get_partial_shape();
            if (shape.rank().is_dynamic() || shape.size() == 0) return false;
            const auto varies = [](const ov::Dimension& side) { return side.is_dynamic(); };
            if (std::any_of(shape.begin() + 1, shape.end(), varies)) return false;
            if (shape[0].is_dynamic()) {
                free = true;
                shape[0] = 1;
            }
            fixed[place] = shape;
        }
        if (free) model.reshape(fixed);
        return free;
    }

    // The model as it was written; of a package it reads the weights where they lie.
    std::shared_ptr<ov::Model> read_model() {
        const std::string_view *xml = files_->contents("model.xml"), *weights = files_->contents("model.bin");
        if (xml == nullptr || weights == nullptr) return core_.read_model(path_);
        // OpenVINO does not write into weights, but has no type for what is only read.
        char* const data = const_cast<char*>(weights->data());
        const ov::Tensor own(ov::element::u8, {weights->size()}, data);
        return core_.read_model(std::string(*xml), weights->empty() ? ov::Tensor() : own);
    }

    // Of a file, OpenVINO starts faster from its cache.
    ov::CompiledModel compile(bool alone) {
        if (alone) return core_.compile_model(alone_, asked_, config_);
        const bool packed = files_->contents("model.xml") != nullptr;
        return packed ? core_.compile_model(read_model(), asked_, config_) : core_.compile_model(path_, asked_, config_);
    }

    // Those for batches of this size, compiled at the first use.
    std::shared_ptr<Requests> requests_for(std::size_t batch) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const bool alone = alone_ != nullptr && batch == 1;
        std::shared_ptr<Requests>& own = alone ? one_ : any_;
        if (own == nullptr) own = std::make_shared<Requests>(files_->opening([&] { return compile(alone); }));
        return own;
    }

    std::shared_ptr<Files> files_;
    ov::Core& core_ = shared_core();
    std::string path_;
    std::string asked_;
    std::string device_;
    ov::AnyMap config_;
    std::map<std::string, std::size_t> places_;
    std::shared_ptr<ov::Model> alone_;
    std::mutex mutex_;
    std::shared_ptr<Requests> one_;
    std::shared_ptr<Requests> any_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const OpenOptions& options) {
    return std::make_unique<OpenvinoBackend>(bundle, options);
}

}  // namespace dnc_runtime

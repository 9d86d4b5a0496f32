// dnc.hpp: dnc.h for C++17. Handles free themselves, and what fails throws dnc::Error.
//
//     dnc::Engine engine("yolov4-tiny.engine");
//     for (const dnc::Box& box : engine.detect({rgb, width, height}))
//         std::cout << box.label << ' ' << box.confidence << '\n';
//
// One engine may be used from any number of threads at once. A network with memory takes images for frames: see dnc.h.
#ifndef DNC_HPP
#define DNC_HPP

#include <cstddef>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dnc.h"

namespace dnc {

// what() says what is wrong, where, and what to do about it, in up to three lines.
class Error : public std::runtime_error {
public:
    Error() : std::runtime_error(dnc_last_error()), status_(dnc_last_status()) {}
    Error(dnc_status status, const std::string& text) : std::runtime_error(text), status_(status) {}

    dnc_status status() const noexcept { return status_; }

private:
    dnc_status status_;
};

// How many pixels, of any integer type: libraries of images count in int. Throws Error for a negative number.
class Side {
public:
    template <class Number, class = std::enable_if_t<std::is_integral_v<Number>>>
    Side(Number count) : count_(static_cast<std::size_t>(count)) {
        if constexpr (std::is_signed_v<Number>) {
            if (count < 0) throw Error(DNC_ERROR_ARGUMENT, "a side of " + std::to_string(count) + " pixels");
        }
    }

    operator std::size_t() const noexcept { return count_; }

private:
    std::size_t count_;
};

// Pixels that lie somewhere: they are not copied.
struct Image {
    const void* data = nullptr;
    Side width = 0;
    Side height = 0;
    dnc_pixels format = DNC_RGB8;
    std::size_t stride = 0;    // bytes from a row to the next; 0: no gap between them
    std::size_t channels = 0;  // of a pixel of DNC_MANY8, DNC_MANY16 and DNC_MANYF32
};

struct Box {
    int class_id = 0;
    std::string label;
    float confidence = 0;
    float center_x = 0, center_y = 0, width = 0, height = 0;  // fractions of the image; may reach out of it
    int left = 0, top = 0, right = 0, bottom = 0;             // whole pixels, clipped; right and bottom are included
};

struct Class {
    int class_id = 0;
    std::string label;
    float confidence = 0;
};

struct Options {
    int threads = 0;                            // how many one run uses; 0: the engine's own choice
    std::map<std::string, std::string> target;  // as {"device", "GPU"}
    std::size_t max_candidates = 0;             // detect suppresses the best so many scores of an image; 0: 100000
    bool trust = false;                         // a package's machine code may run
};

// What an input or an output has to be. A side of DNC_ANY may have any length.
struct Description {
    std::string name;
    dnc_type type = DNC_FLOAT32;
    std::vector<std::size_t> shape;
};

// An array to run on, which lies somewhere, in C order.
struct Array {
    std::string name;
    std::vector<std::size_t> shape;
    const void* data = nullptr;
    dnc_type type = DNC_FLOAT32;
};

namespace detail {

inline void check(dnc_status status) {
    if (status != DNC_OK) throw Error();
}

struct Free {
    void operator()(dnc_engine* engine) const { dnc_close(engine); }
    void operator()(dnc_results* results) const { dnc_results_free(results); }
    void operator()(dnc_outputs* outputs) const { dnc_outputs_free(outputs); }
};

inline Description description(const dnc_array& array) {
    return {array.name, array.type, std::vector<std::size_t>(array.shape, array.shape + array.rank)};
}

inline dnc_image image(const Image& given) {
    dnc_image own = DNC_IMAGE_INIT;
    // As dnc_pixels counts: six orders of channels, for each of three types.
    constexpr std::size_t usual[] = {3, 3, 1, 4, 4}, sizes[] = {1, 2, 4};
    const auto format = static_cast<std::size_t>(given.format);
    const std::size_t channels = format % 6 == 5 ? given.channels : usual[format % 6];
    const std::size_t row = given.width * channels * sizes[format / 6 % 3];
    own.data = given.data;
    own.width = given.width;
    own.height = given.height;
    own.stride = given.stride;
    own.bytes = given.height == 0 ? 0 : (given.height - 1) * (given.stride == 0 ? row : given.stride) + row;
    own.format = given.format;
    own.channels = given.channels;
    return own;
}

inline std::vector<dnc_image> images(const std::vector<Image>& given) {
    std::vector<dnc_image> own;
    for (const Image& one : given) own.push_back(image(one));
    return own;
}

inline std::vector<Box> boxes(const dnc_results* results, std::size_t place) {
    std::vector<Box> all;
    dnc_detection found = DNC_DETECTION_INIT;
    for (std::size_t index = 0; dnc_results_detection(results, place, index, &found) == DNC_OK; ++index) {
        all.push_back({found.class_id, found.label, found.confidence, found.center_x, found.center_y, found.width,
                       found.height, found.left, found.top, found.right, found.bottom});
    }
    return all;
}

inline std::vector<Class> classes(const dnc_results* results, std::size_t place) {
    std::vector<Class> all;
    dnc_classification found = DNC_CLASSIFICATION_INIT;
    for (std::size_t index = 0; dnc_results_classification(results, place, index, &found) == DNC_OK; ++index) {
        all.push_back({found.class_id, found.label, found.confidence});
    }
    return all;
}

}  // namespace detail

// What outputs are of: boxes, or the best classes of the whole image. The other one is empty.
struct Found {
    std::vector<Box> boxes;
    std::vector<Class> classes;
};

// The outputs of one run, in the engine's own memory. They may outlive the engine.
class Outputs {
public:
    std::size_t size() const { return dnc_outputs_count(handle_.get()); }

    Description description(std::size_t index) const { return detail::description(get(index)); }

    // The numbers of an output, in C order.
    const float* data(std::size_t index) const { return static_cast<const float*>(get(index).data); }

    // How many there are.
    std::size_t count(std::size_t index) const { return get(index).bytes / sizeof(float); }

    // What they are of, as Engine::detect or Engine::classify makes it of a run; of each image of the batch, of which
    // the width and the height alone are looked at.
    std::vector<Found> postprocess(const std::vector<Image>& images, float confidence = 0.25f, float iou = 0.45f,
                                   std::size_t top = 5) const {
        const std::vector<dnc_image> own = detail::images(images);
        dnc_results* results = nullptr;
        detail::check(dnc_postprocess(handle_.get(), own.data(), own.size(), confidence, iou, top, &results));
        const std::unique_ptr<dnc_results, detail::Free> freed(results);
        std::vector<Found> all;
        for (std::size_t place = 0; place < own.size(); ++place) {
            all.push_back({detail::boxes(results, place), detail::classes(results, place)});
        }
        return all;
    }

private:
    friend class Engine;
    explicit Outputs(dnc_outputs* handle) : handle_(handle) {}

    dnc_array get(std::size_t index) const {
        dnc_array array = DNC_ARRAY_INIT;
        detail::check(dnc_outputs_get(handle_.get(), index, &array));
        return array;
    }

    std::unique_ptr<dnc_outputs, detail::Free> handle_;
};

// An engine folder or package, opened. Movable.
class Engine {
public:
    explicit Engine(const std::string& folder, const Options& options = Options()) {
        open(options, [&](const dnc_open_options* own, dnc_engine** engine) {
            return dnc_open(folder.c_str(), own, engine);
        });
    }

    // Of a package in memory, which is not copied: it has to stay as it is as long as the engine and its streams do.
    static Engine from_memory(const void* package, std::size_t bytes, const Options& options = Options()) {
        Engine engine(nullptr);
        engine.open(options, [&](const dnc_open_options* own, dnc_engine** opened) {
            return dnc_open_memory(package, bytes, own, opened);
        });
        return engine;
    }

    // The same engine, which is not loaded again, with a memory of its own: for a network with memory, one for each
    // camera. It may outlive this one.
    Engine stream() const {
        dnc_engine* stream = nullptr;
        detail::check(dnc_open_stream(handle_.get(), &stream));
        return Engine(stream);
    }

    // Forgets the frames that a network with memory has seen.
    void reset() { detail::check(dnc_reset(handle_.get())); }

    std::string name() const { return dnc_engine_name(handle_.get()); }
    std::string target() const { return dnc_engine_target(handle_.get()); }
    std::string device() const { return dnc_engine_device(handle_.get()); }
    dnc_task task() const { return dnc_engine_task(handle_.get()); }

    std::vector<std::string> labels() const {
        std::vector<std::string> names;
        for (std::size_t index = 0; index < dnc_engine_classes(handle_.get()); ++index) {
            names.emplace_back(dnc_engine_label(handle_.get(), index));
        }
        return names;
    }

    std::vector<Description> inputs() const {
        return descriptions(dnc_engine_input, dnc_engine_input_count(handle_.get()));
    }
    std::vector<Description> outputs() const {
        return descriptions(dnc_engine_output, dnc_engine_output_count(handle_.get()));
    }

    // Boxes by descending confidence; of several images at once, which run as batches where the engine takes them, and
    // as frames one after the other where the network has a memory.
    std::vector<Box> detect(const Image& image, float confidence = 0.25f, float iou = 0.45f) const {
        return detect(std::vector<Image>{image}, confidence, iou).front();
    }

    std::vector<std::vector<Box>> detect(const std::vector<Image>& images, float confidence = 0.25f,
                                         float iou = 0.45f) const {
        const std::vector<dnc_image> own = detail::images(images);
        dnc_results* results = nullptr;
        detail::check(dnc_detect(handle_.get(), own.data(), own.size(), confidence, iou, &results));
        const std::unique_ptr<dnc_results, detail::Free> freed(results);
        std::vector<std::vector<Box>> all;
        for (std::size_t place = 0; place < own.size(); ++place) all.push_back(detail::boxes(results, place));
        return all;
    }

    // The best classes.
    std::vector<Class> classify(const Image& image, std::size_t top = 5) const {
        const dnc_image own = detail::image(image);
        dnc_results* results = nullptr;
        detail::check(dnc_classify(handle_.get(), &own, 1, top, &results));
        const std::unique_ptr<dnc_results, detail::Free> freed(results);
        return detail::classes(results, 0);
    }

    // The network's input for an image, without the batch axis: (channels, height, width).
    std::vector<float> preprocess(const Image& image) const {
        const dnc_image own = detail::image(image);
        if (inputs().front().type != DNC_FLOAT32) {
            throw std::logic_error("the engine takes pixels and preprocesses them itself");
        }
        std::size_t bytes = 0;
        detail::check(dnc_preprocess(handle_.get(), &own, nullptr, 0, &bytes));
        std::vector<float> input(bytes / sizeof(float));
        detail::check(dnc_preprocess(handle_.get(), &own, input.data(), bytes, nullptr));
        return input;
    }

    // Runs on arrays, which are read where they lie. States that are not given are zero.
    Outputs run(const std::vector<Array>& arrays) const {
        std::vector<dnc_array> own;
        for (const Array& array : arrays) {
            dnc_array one = DNC_ARRAY_INIT;
            one.name = array.name.c_str();
            one.type = array.type;
            one.rank = array.shape.size();
            one.shape = array.shape.data();
            one.data = array.data;
            one.bytes = array.type == DNC_UINT8 ? 1 : sizeof(float);
            for (const std::size_t side : array.shape) one.bytes *= side;
            own.push_back(one);
        }
        dnc_outputs* outputs = nullptr;
        detail::check(dnc_run(handle_.get(), own.data(), own.size(), &outputs));
        return Outputs(outputs);
    }

private:
    explicit Engine(dnc_engine* handle) : handle_(handle) {}

    template <class Opener>
    void open(const Options& options, const Opener& opener) {
        std::vector<std::string> words;
        for (const auto& [key, value] : options.target) words.push_back(key + "=" + value);
        std::vector<const char*> pointers;
        for (const std::string& word : words) pointers.push_back(word.c_str());
        pointers.push_back(nullptr);
        dnc_open_options own = DNC_OPEN_OPTIONS_INIT;
        own.threads = options.threads;
        own.options = pointers.data();
        own.max_candidates = options.max_candidates;
        own.trust = options.trust ? 1 : 0;
        dnc_engine* engine = nullptr;
        detail::check(opener(&own, &engine));
        handle_.reset(engine);
    }

    template <class Describe>
    std::vector<Description> descriptions(Describe describe, std::size_t count) const {
        std::vector<Description> all;
        for (std::size_t index = 0; index < count; ++index) {
            dnc_array array = DNC_ARRAY_INIT;
            detail::check(describe(handle_.get(), index, &array));
            all.push_back(detail::description(array));
        }
        return all;
    }

    std::unique_ptr<dnc_engine, detail::Free> handle_;
};

}  // namespace dnc

#endif

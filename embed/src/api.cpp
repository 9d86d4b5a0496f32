// The C interface of dnc.h over Engine: handles, and errors as a status and a text for each thread.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "dnc.h"
#include "engine.hpp"
#include "error.hpp"

struct dnc_engine {
    std::shared_ptr<const dnc_runtime::Engine> engine;
    // It locks itself.
    mutable dnc_runtime::Memory memory;
};

struct dnc_results {
    std::shared_ptr<const dnc_runtime::Engine> engine;  // whose labels are pointed to
    std::vector<dnc_runtime::Image> images;
    bool boxes;
    std::vector<std::vector<dnc_runtime::Detection>> detections;
    std::vector<std::vector<dnc_runtime::Classification>> classifications;
};

struct dnc_outputs {
    std::shared_ptr<const dnc_runtime::Engine> engine;  // whose library must stay open
    std::size_t batch = 0;
    std::unique_ptr<dnc_runtime::Outputs> outputs;
};

namespace {

using dnc_runtime::Error;
using dnc_runtime::Image;
using dnc_runtime::Tensor;

// Of a fixed size, so that telling of an error needs no memory.
struct Last {
    dnc_status status = DNC_OK;
    char text[2048] = "";
};
thread_local Last last;

dnc_status remember(dnc_status status, const char* text) noexcept {
    last.status = status;
    std::snprintf(last.text, sizeof last.text, "%s", text);
    return status;
}

// Runs what may throw; nothing gets out of it.
template <class Body>
dnc_status guarded(Body&& body) noexcept {
    try {
        body();
        return DNC_OK;
    } catch (const Error& error) {
        return remember(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return remember(DNC_ERROR_MEMORY, "there is not enough memory");
    } catch (const std::length_error&) {
        return remember(DNC_ERROR_MEMORY, "there is not enough memory");
    } catch (const std::exception& error) {
        return remember(DNC_ERROR_INTERNAL, error.what());
    } catch (...) {
        return remember(DNC_ERROR_INTERNAL, "an exception of an unknown kind");
    }
}

void need(bool there, const char* what) {
    if (!there) throw Error(DNC_ERROR_ARGUMENT, std::string(what) + " is NULL");
}

// As in Python: a confidence may be under 0, which all boxes are over, and over 1, as scores of [detection] and of
// [region] without a softmax can be. An overlap is a share. Of nan every comparison is false.
void need_thresholds(float confidence, float iou) {
    if (std::isnan(confidence)) throw Error(DNC_ERROR_ARGUMENT, "confidence=nan is no number", "", "0.25 are 25 %");
    if (iou >= 0 && iou <= 1) return;
    throw Error(DNC_ERROR_ARGUMENT, "iou=" + std::to_string(iou) + " is not from 0 to 1", "", "0.45 are 45 %");
}

// A struct that a program gave: those fields that it knows, the others at their defaults.
template <class Struct>
Struct known(const Struct* given, const Struct& defaults, const char* what) {
    need(given != nullptr, what);
    if (given->size < sizeof(std::size_t)) {
        throw Error(DNC_ERROR_ARGUMENT, std::string("the size of ") + what + " is not set", "", "start with its _INIT");
    }
    Struct own = defaults;
    std::memcpy(&own, given, std::min(given->size, sizeof own));
    return own;
}

// Fills a struct of a program, as far as it knows the fields.
template <class Struct>
void fill(Struct* out, Struct own, const char* what) {
    need(out != nullptr, what);
    own.size = out->size;
    if (own.size < sizeof(std::size_t)) {
        throw Error(DNC_ERROR_ARGUMENT, std::string("the size of ") + what + " is not set", "", "start with its _INIT");
    }
    std::memcpy(out, &own, std::min(own.size, sizeof own));
}

// One of an array of structs that a program gave, whose structs may be smaller or larger than ours.
template <class Struct>
const Struct* item(const Struct* first, std::size_t index) {
    if (first->size % alignof(Struct) != 0) {
        throw Error(DNC_ERROR_ARGUMENT, "structs of " + std::to_string(first->size) + " bytes cannot be an array", "",
                    "start with its _INIT");
    }
    return reinterpret_cast<const Struct*>(reinterpret_cast<const char*>(first) + index * first->size);
}

dnc_runtime::OpenOptions told(const dnc_open_options* options) {
    const dnc_open_options defaults = DNC_OPEN_OPTIONS_INIT;
    const dnc_open_options own = options == nullptr ? defaults : known(options, defaults, "the options");
    dnc_runtime::OpenOptions found;
    found.threads = own.threads;
    found.max_candidates = own.max_candidates;
    found.trust = own.trust != 0;
    if (found.threads < 0) throw Error(DNC_ERROR_ARGUMENT, std::to_string(found.threads) + " threads");
    for (const char* const* each = own.options; each != nullptr && *each != nullptr; ++each) {
        const char* mark = std::strchr(*each, '=');
        if (mark == nullptr) throw Error(DNC_ERROR_ARGUMENT, std::string("option '") + *each + "' is no KEY=VALUE");
        found.options[std::string(*each, mark)] = mark + 1;
    }
    return found;
}

// Opens what `read` reads.
template <class Read>
dnc_status open_engine(const dnc_open_options* options, dnc_engine** engine, const Read& read) noexcept {
    if (engine != nullptr) *engine = nullptr;
    return guarded([&] {
        need(engine != nullptr, "where to put the engine");
        const dnc_runtime::OpenOptions own = told(options);
        auto made = std::make_unique<dnc_engine>();
        made->engine = std::make_shared<const dnc_runtime::Engine>(read(), own);
        *engine = made.release();
    });
}

dnc_array described(const Tensor& tensor) {
    dnc_array array = DNC_ARRAY_INIT;
    array.name = tensor.name.c_str();
    array.type = tensor.type;
    array.rank = tensor.shape.size();
    array.shape = tensor.shape.data();
    array.data = tensor.data;
    array.bytes = tensor.data == nullptr ? 0 : tensor.bytes();
    return array;
}

void describe(const std::vector<Tensor>& tensors, std::size_t index, dnc_array* out) {
    if (index >= tensors.size()) throw Error(DNC_ERROR_ARGUMENT, "there is no array " + std::to_string(index));
    fill(out, described(tensors[index]), "the array");
}

// Of images of which the size alone is looked at.
std::vector<Image> sizes_of(const dnc_image* images, std::size_t count) {
    const dnc_image defaults = DNC_IMAGE_INIT;
    std::vector<Image> found(count);
    if (count != 0) known(images, defaults, "the image");
    for (std::size_t index = 0; index < count; ++index) {
        const dnc_image own = known(item(images, index), defaults, "the image");
        Image::check_sides(own);
        found[index].width = own.width;
        found[index].height = own.height;
    }
    return found;
}

std::vector<Image> images_of(const dnc_image* images, std::size_t count) {
    const dnc_image defaults = DNC_IMAGE_INIT;
    std::vector<Image> found;
    if (count != 0) known(images, defaults, "the image");
    for (std::size_t index = 0; index < count; ++index) {
        found.push_back(Image::from(known(item(images, index), defaults, "the image")));
    }
    return found;
}

// draw_detections_v3: whole pixels, truncated and clipped.
int pixel(double place, std::size_t size) {
    const double scaled = place * static_cast<double>(size), end = static_cast<double>(size) - 1;
    const double low = scaled > 0 ? scaled : 0;
    return static_cast<int>(end < low ? end : low);
}

}  // namespace

extern "C" {

const char* dnc_version(void) { return DNC_VERSION; }

int dnc_abi(void) { return DNC_ABI; }

const char* dnc_targets(void) {
    const char* names = "";
    guarded([&] { names = dnc_runtime::known_targets().c_str(); });
    return names;
}

const char* dnc_last_error(void) { return last.text; }

dnc_status dnc_last_status(void) { return last.status; }

dnc_status dnc_open(const char* folder, const dnc_open_options* options, dnc_engine** engine) {
    return open_engine(options, engine, [&] {
        need(folder != nullptr, "the folder");
        return dnc_runtime::read_bundle(folder);
    });
}

dnc_status dnc_open_memory(const void* data, size_t bytes, const dnc_open_options* options, dnc_engine** engine) {
    return open_engine(options, engine, [&] {
        need(data != nullptr, "the package");
        return dnc_runtime::read_bundle({static_cast<const char*>(data), bytes}, "the package in memory");
    });
}

dnc_status dnc_open_stream(const dnc_engine* engine, dnc_engine** stream) {
    if (stream != nullptr) *stream = nullptr;
    return guarded([&] {
        need(engine != nullptr, "the engine");
        need(stream != nullptr, "where to put the stream");
        auto made = std::make_unique<dnc_engine>();
        made->engine = engine->engine;
        *stream = made.release();
    });
}

dnc_status dnc_reset(dnc_engine* engine) {
    return guarded([&] {
        need(engine != nullptr, "the engine");
        engine->memory.reset();
    });
}

void dnc_close(dnc_engine* engine) { delete engine; }

const char* dnc_engine_name(const dnc_engine* engine) {
    return engine == nullptr ? "" : engine->engine->bundle().name.c_str();
}

const char* dnc_engine_target(const dnc_engine* engine) {
    return engine == nullptr ? "" : engine->engine->bundle().target.c_str();
}

const char* dnc_engine_device(const dnc_engine* engine) {
    return engine == nullptr ? "" : engine->engine->device().c_str();
}

dnc_task dnc_engine_task(const dnc_engine* engine) {
    return engine == nullptr ? DNC_TASK_ARRAYS : engine->engine->task();
}

size_t dnc_engine_classes(const dnc_engine* engine) {
    return engine == nullptr ? 0 : engine->engine->bundle().classes();
}

const char* dnc_engine_label(const dnc_engine* engine, size_t class_id) {
    if (engine == nullptr || class_id >= engine->engine->bundle().labels.size()) return nullptr;
    return engine->engine->bundle().labels[class_id].c_str();
}

size_t dnc_engine_input_count(const dnc_engine* engine) {
    return engine == nullptr ? 0 : engine->engine->inputs().size();
}

dnc_status dnc_engine_input(const dnc_engine* engine, size_t index, dnc_array* description) {
    return guarded([&] {
        need(engine != nullptr, "the engine");
        describe(engine->engine->inputs(), index, description);
    });
}

size_t dnc_engine_output_count(const dnc_engine* engine) {
    return engine == nullptr ? 0 : engine->engine->outputs().size();
}

dnc_status dnc_engine_output(const dnc_engine* engine, size_t index, dnc_array* description) {
    return guarded([&] {
        need(engine != nullptr, "the engine");
        describe(engine->engine->outputs(), index, description);
    });
}

size_t dnc_engine_head_count(const dnc_engine* engine) {
    return engine == nullptr ? 0 : engine->engine->bundle().heads.size();
}

dnc_status dnc_engine_head(const dnc_engine* engine, size_t index, dnc_head* head) {
    return guarded([&] {
        need(engine != nullptr, "the engine");
        const std::vector<dnc_runtime::Head>& heads = engine->engine->bundle().heads;
        if (index >= heads.size()) throw Error(DNC_ERROR_ARGUMENT, "there is no head " + std::to_string(index));
        dnc_head own = DNC_HEAD_INIT;
        own.kind = heads[index].kind_name.c_str();
        own.output = heads[index].output.c_str();
        own.where = heads[index].where.c_str();
        own.classes = heads[index].classes;
        fill(head, own, "the head");
    });
}

dnc_status dnc_preprocess(const dnc_engine* engine, const dnc_image* image, void* out, size_t bytes, size_t* needed) {
    if (needed != nullptr) *needed = 0;
    return guarded([&] {
        need(engine != nullptr, "the engine");
        const Image own = images_of(image, 1)[0];
        const std::size_t wanted = engine->engine->prepared_bytes(own);
        if (needed != nullptr) *needed = wanted;
        if (out == nullptr) return;
        if (bytes != wanted) {
            throw Error(DNC_ERROR_ARGUMENT, "the input has " + std::to_string(wanted) + " bytes, there is room for " +
                                                std::to_string(bytes));
        }
        engine->engine->prepare(own, out);
    });
}

dnc_status dnc_run(const dnc_engine* engine, const dnc_array* inputs, size_t count, dnc_outputs** outputs) {
    if (outputs != nullptr) *outputs = nullptr;
    return guarded([&] {
        need(engine != nullptr, "the engine");
        need(outputs != nullptr, "where to put the outputs");
        const dnc_array defaults = DNC_ARRAY_INIT;
        std::vector<Tensor> given;
        if (count != 0) known(inputs, defaults, "the array");
        for (std::size_t index = 0; index < count; ++index) {
            const dnc_array own = known(item(inputs, index), defaults, "the array");
            need(own.name != nullptr, "the name of an array");
            need(own.data != nullptr, "the data of an array");
            need(own.shape != nullptr || own.rank == 0, "the shape of an array");
            if (own.type != DNC_FLOAT32 && own.type != DNC_UINT8) {
                throw Error(DNC_ERROR_ARGUMENT, "array '" + std::string(own.name) + "' has the unknown type " +
                                                    std::to_string(static_cast<int>(own.type)));
            }
            Tensor tensor{own.name, own.type, {own.shape, own.shape + own.rank}, own.data};
            // Divided, for a product of sides that are wrong may be anything.
            std::size_t left = own.bytes / (own.type == DNC_UINT8 ? 1 : sizeof(float));
            for (const std::size_t side : tensor.shape) left = side == 0 ? 0 : left / side;
            if (left == 0 || tensor.bytes() != own.bytes) {
                throw Error(DNC_ERROR_ARGUMENT, "array '" + tensor.name + "' has " + std::to_string(own.bytes) +
                                                    " bytes, which its shape has not");
            }
            given.push_back(std::move(tensor));
        }
        auto made = std::make_unique<dnc_outputs>();
        made->engine = engine->engine;
        for (const Tensor& tensor : given) {
            if (tensor.name == "input" && !tensor.shape.empty()) made->batch = tensor.shape[0];
        }
        made->outputs = engine->engine->run(std::move(given));
        *outputs = made.release();
    });
}

size_t dnc_outputs_count(const dnc_outputs* outputs) {
    return outputs == nullptr ? 0 : outputs->outputs->tensors().size();
}

dnc_status dnc_outputs_get(const dnc_outputs* outputs, size_t index, dnc_array* array) {
    return guarded([&] {
        need(outputs != nullptr, "the outputs");
        describe(outputs->outputs->tensors(), index, array);
    });
}

void dnc_outputs_free(dnc_outputs* outputs) { delete outputs; }

dnc_status dnc_detect(const dnc_engine* engine, const dnc_image* images, size_t count, float confidence, float iou,
                      dnc_results** results) {
    if (results != nullptr) *results = nullptr;
    return guarded([&] {
        need(engine != nullptr, "the engine");
        need(results != nullptr, "where to put the results");
        need_thresholds(confidence, iou);
        auto made = std::make_unique<dnc_results>();
        made->engine = engine->engine;
        made->images = images_of(images, count);
        made->boxes = true;
        made->detections = engine->engine->detect(made->images, confidence, iou, engine->memory);
        *results = made.release();
    });
}

dnc_status dnc_classify(const dnc_engine* engine, const dnc_image* images, size_t count, size_t top,
                        dnc_results** results) {
    if (results != nullptr) *results = nullptr;
    return guarded([&] {
        need(engine != nullptr, "the engine");
        need(results != nullptr, "where to put the results");
        auto made = std::make_unique<dnc_results>();
        made->engine = engine->engine;
        made->images = images_of(images, count);
        made->boxes = false;
        made->classifications = engine->engine->classify(made->images, top, engine->memory);
        *results = made.release();
    });
}

dnc_status dnc_postprocess(const dnc_outputs* outputs, const dnc_image* images, size_t count, float confidence,
                           float iou, size_t top, dnc_results** results) {
    if (results != nullptr) *results = nullptr;
    return guarded([&] {
        need(outputs != nullptr, "the outputs");
        need(results != nullptr, "where to put the results");
        need_thresholds(confidence, iou);
        const dnc_runtime::Engine& engine = *outputs->engine;
        auto made = std::make_unique<dnc_results>();
        made->engine = outputs->engine;
        made->images = sizes_of(images, count);
        made->boxes = engine.gives_boxes();
        if (count > outputs->batch) {
            throw Error(DNC_ERROR_ARGUMENT, "the outputs are of " + std::to_string(outputs->batch) + " images, not of " +
                                                std::to_string(count));
        }
        for (std::size_t place = 0; place < count; ++place) {
            if (made->boxes) {
                made->detections.push_back(
                    engine.boxes_of(made->images[place], place, *outputs->outputs, confidence, iou));
            } else {
                made->classifications.push_back(engine.classes_of(place, *outputs->outputs, top));
            }
        }
        *results = made.release();
    });
}

size_t dnc_results_count(const dnc_results* results, size_t image) {
    if (results == nullptr || image >= results->images.size()) return 0;
    return results->boxes ? results->detections[image].size() : results->classifications[image].size();
}

dnc_status dnc_results_detection(const dnc_results* results, size_t image, size_t index, dnc_detection* detection) {
    // The end of a loop over all is no error to remember.
    if (results == nullptr || !results->boxes || index >= dnc_results_count(results, image)) return DNC_ERROR_ARGUMENT;
    return guarded([&] {
        const dnc_runtime::Detection& found = results->detections[image][index];
        const Image& size = results->images[image];
        dnc_detection own = DNC_DETECTION_INIT;
        own.class_id = static_cast<int>(found.class_id);
        own.label = results->engine->bundle().labels[found.class_id].c_str();
        own.confidence = found.confidence;
        own.center_x = found.box[0];
        own.center_y = found.box[1];
        own.width = found.box[2];
        own.height = found.box[3];
        const double x = found.box[0], y = found.box[1], across = found.box[2], down = found.box[3];
        own.left = pixel(x - across / 2, size.width);
        own.top = pixel(y - down / 2, size.height);
        own.right = pixel(x + across / 2, size.width);
        own.bottom = pixel(y + down / 2, size.height);
        fill(detection, own, "the detection");
    });
}

dnc_status dnc_results_classification(const dnc_results* results, size_t image, size_t index,
                                      dnc_classification* classification) {
    if (results == nullptr || results->boxes || index >= dnc_results_count(results, image)) return DNC_ERROR_ARGUMENT;
    return guarded([&] {
        const dnc_runtime::Classification& found = results->classifications[image][index];
        dnc_classification own = DNC_CLASSIFICATION_INIT;
        own.class_id = static_cast<int>(found.class_id);
        own.label = results->engine->bundle().labels[found.class_id].c_str();
        own.confidence = found.confidence;
        fill(classification, own, "the classification");
    });
}

void dnc_results_free(dnc_results* results) { delete results; }

}  // extern "C"

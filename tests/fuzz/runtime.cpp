// The C interface on engine folders and packages that may be anything: a path a line on stdin; on stdout a line with a
// dnc_status and what was wrong. What is in a package's file is opened from memory too, where no byte more than there is
// belongs to it. Sanitizers watch; what they find ends the program.

#include <dlfcn.h>
#include <dnc.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

// oneTBB opens a library of its own with RTLD_DEEPBIND, which the sanitizer of addresses refuses.
extern "C" __attribute__((visibility("default"))) void* dlopen(const char* name, int flags) noexcept {
    static const auto next = reinterpret_cast<void* (*)(const char*, int)>(dlsym(RTLD_NEXT, "dlopen"));
    return next(name, flags & ~RTLD_DEEPBIND);
}

namespace {

constexpr std::size_t most = 1 << 21;  // Elements of an input that is made here.

// All of an array's shape, with 1 for any length; 0 if that is more than `most`.
std::size_t elements(const dnc_array& array) {
    std::size_t count = 1;
    for (std::size_t axis = 0; axis < array.rank; ++axis) {
        const std::size_t side = array.shape[axis] == DNC_ANY ? 1 : array.shape[axis];
        if (side == 0 || side > most / count) return 0;
        count *= side;
    }
    return count;
}

void run(const dnc_engine* engine) {
    std::vector<dnc_array> inputs(dnc_engine_input_count(engine));
    std::vector<std::vector<std::size_t>> shapes;
    std::vector<std::vector<float>> data;
    for (std::size_t index = 0; index < inputs.size(); ++index) {
        inputs[index] = DNC_ARRAY_INIT;
        if (dnc_engine_input(engine, index, &inputs[index]) != DNC_OK || elements(inputs[index]) == 0) return;
        shapes.emplace_back(inputs[index].shape, inputs[index].shape + inputs[index].rank);
        for (std::size_t& side : shapes.back()) side = side == DNC_ANY ? 1 : side;
        data.emplace_back(elements(inputs[index]));
    }
    for (std::size_t index = 0; index < inputs.size(); ++index) {
        inputs[index].shape = shapes[index].data();
        inputs[index].data = data[index].data();
        inputs[index].bytes = data[index].size() * (inputs[index].type == DNC_UINT8 ? 1 : sizeof(float));
    }
    dnc_outputs* outputs = nullptr;
    if (dnc_run(engine, inputs.data(), inputs.size(), &outputs) != DNC_OK) return;
    double sum = 0;
    for (std::size_t index = 0; index < dnc_outputs_count(outputs); ++index) {
        dnc_array array = DNC_ARRAY_INIT;
        if (dnc_outputs_get(outputs, index, &array) != DNC_OK) continue;
        // Each byte is read, so that a sanitizer sees one that is not there.
        for (std::size_t at = 0; at < array.bytes; ++at) sum += static_cast<const unsigned char*>(array.data)[at];
    }
    dnc_outputs_free(outputs);
    if (sum < 0) std::abort();
}

std::string said(dnc_status status) {
    return std::to_string(static_cast<int>(status)) + ' ' + (status == DNC_OK ? "" : dnc_last_error());
}

std::string use(dnc_status opened, dnc_engine* engine) {
    if (opened != DNC_OK) return said(opened);
    std::string all = dnc_engine_name(engine);
    all += dnc_engine_device(engine);
    for (std::size_t index = 0; index < dnc_engine_classes(engine); ++index) all += dnc_engine_label(engine, index);
    for (std::size_t index = 0; index < dnc_engine_head_count(engine); ++index) {
        dnc_head head = DNC_HEAD_INIT;
        if (dnc_engine_head(engine, index, &head) == DNC_OK) all += head.output;
    }
    std::vector<unsigned char> pixels(13 * 11 * 3, 77);
    dnc_image image = DNC_IMAGE_INIT;
    image.data = pixels.data(), image.bytes = pixels.size(), image.width = 13, image.height = 11;
    dnc_results* results = nullptr;
    const bool classifies = dnc_engine_task(engine) == DNC_TASK_CLASSIFY;
    const dnc_status status = classifies ? dnc_classify(engine, &image, 1, 5, &results)
                                         : dnc_detect(engine, &image, 1, 0.01f, 0.45f, &results);
    const std::string answer = said(status);
    for (std::size_t index = 0; index < dnc_results_count(results, 0); ++index) {
        dnc_detection box = DNC_DETECTION_INIT;
        dnc_classification one = DNC_CLASSIFICATION_INIT;
        if (classifies && dnc_results_classification(results, 0, index, &one) == DNC_OK) all += one.label;
        if (!classifies && dnc_results_detection(results, 0, index, &box) == DNC_OK) all += box.label;
    }
    dnc_results_free(results);
    run(engine);
    dnc_close(engine);
    return all.size() > most * 64 ? "6 too much text" : answer;
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        dnc_engine* engine = nullptr;
        dnc_open_options options = DNC_OPEN_OPTIONS_INIT;
        options.threads = 1;
        const dnc_status opened = dnc_open(line.c_str(), &options, &engine);
        std::string answer = use(opened, engine);
        if (line.size() > 4 && line.substr(line.size() - 4) == ".dnc") {
            std::ifstream file(line, std::ios::binary);
            const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
            const dnc_status again = dnc_open_memory(content.empty() ? "" : content.data(), content.size(), &options, &engine);
            const std::string other = use(again, engine);
            if (other[0] != answer[0]) answer = "6 from memory: " + other + " from the file: " + answer;
        }
        for (char& letter : answer) letter = letter == '\n' ? ' ' : letter;
        std::cout << answer << std::endl;
    }
}

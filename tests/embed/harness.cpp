// The library's parts that need no back end, for the tests: commands on stdin, one a line, whose words are separated by
// tabs; what they give on stdout, ended by a line "end". An error is a line "error STATUS TEXT".
//
//     bundle FOLDER                                        name, target and how many heads it has
//     package FILE                                         the same of a package, in just the bytes that it has
//     loss FOLDER                                          what is lost on this CPU
//     detect FOLDER NUMBERS CONFIDENCE IOU WIDTH HEIGHT    boxes of an image of that size: class, confidence, box
//     classify FOLDER NUMBERS TOP                          class, confidence
//     preprocess FOLDER PIXELS WIDTH HEIGHT STRIDE FORMAT CHANNELS OUT
//     json FILE                                            the canonical text
//     sha256 FILE
//
// NUMBERS has the outputs that engine.json lists, float32, one after the other.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "arithmetic.hpp"
#include "bundle.hpp"
#include "decode.hpp"
#include "error.hpp"
#include "json.hpp"
#include "preprocess.hpp"
#include "sha256.hpp"

using namespace dnc_runtime;

namespace {

std::vector<char> read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<Map> maps_of(const Bundle& bundle, const std::vector<float>& numbers,
                         const std::vector<const Head*>& heads) {
    std::vector<Map> outputs, maps;
    std::size_t start = 0;
    for (const Shape& shape : bundle.output_shapes) {
        std::size_t size = 1;
        for (const std::size_t side : shape) size *= side;
        if (size > numbers.size() - start) throw Error(DNC_ERROR_ARGUMENT, "too few numbers");
        outputs.push_back({numbers.data() + start, shape});
        start += size;
    }
    for (const Head* head : heads) {
        const auto place = std::find(bundle.outputs.begin(), bundle.outputs.end(), head->output);
        maps.push_back(outputs[static_cast<std::size_t>(place - bundle.outputs.begin())]);
    }
    return maps;
}

std::vector<float> numbers_of(const std::string& path) {
    const std::vector<char> bytes = read(path);
    std::vector<float> numbers(bytes.size() / sizeof(float));
    if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(float));
    return numbers;
}

void run(const std::vector<std::string>& words) {
    const std::string& command = words.at(0);
    if (command == "json" || command == "sha256") {
        const std::vector<char> content = read(words.at(1));
        if (command == "json") {
            std::cout << Json::parse({content.data(), content.size()}).canonical("sha256") << '\n';
            return;
        }
        Sha256 digest;
        // In pieces of growing size, so that every way of filling a block occurs.
        for (std::size_t place = 0, size = 1; place < content.size(); place += size, ++size) {
            digest.update(content.data() + place, std::min(size, content.size() - place));
        }
        std::cout << digest.finish() << '\n';
        return;
    }
    if (command == "package") {
        const std::vector<char> content = read(words.at(1));
        const Bundle bundle = read_bundle({content.data(), content.size()}, "the package in memory");
        std::cout << bundle.name << ' ' << bundle.target << ' ' << bundle.heads.size() << '\n';
        return;
    }
    const Bundle bundle = read_bundle(words.at(1));
    const bool decodes = command == "detect" || command == "classify";
    if (decodes && (bundle.decode != Bundle::Decode::host || bundle.box_heads().empty() != (command == "classify"))) {
        throw Error(DNC_ERROR_ARGUMENT, "the engine gives something else");
    }
    if (command == "bundle") {
        std::cout << bundle.name << ' ' << bundle.target << ' ' << bundle.heads.size() << '\n';
    } else if (command == "loss") {
        std::cout << loss(bundle) << '\n';
    } else if (command == "detect") {
        const std::vector<float> numbers = numbers_of(words.at(2));
        const std::vector<const Head*> heads = bundle.box_heads();
        BoxTransform transform;
        if (bundle.preprocessing) {
            transform = bundle.preprocessing->transform(std::stoul(words.at(5)), std::stoul(words.at(6)));
        }
        const std::vector<Map> maps = maps_of(bundle, numbers, heads);
        const std::size_t limit = words.size() > 7 ? std::stoul(words[7]) : default_candidates;
        for (const Detection& one :
             detections(heads, maps, std::stof(words.at(3)), std::stof(words.at(4)), limit, transform)) {
            std::printf("%zu %.9g %.9g %.9g %.9g %.9g\n", one.class_id, static_cast<double>(one.confidence),
                        static_cast<double>(one.box[0]), static_cast<double>(one.box[1]),
                        static_cast<double>(one.box[2]), static_cast<double>(one.box[3]));
        }
    } else if (command == "classify") {
        const std::vector<float> numbers = numbers_of(words.at(2));
        const Head& head = bundle.heads.at(0);
        for (const Classification& one :
             best_classes(head, maps_of(bundle, numbers, {&head})[0], std::stoul(words.at(3)))) {
            std::printf("%zu %.9g\n", one.class_id, static_cast<double>(one.confidence));
        }
    } else if (command == "preprocess") {
        const std::vector<char> pixels = read(words.at(2));
        // Of just the bytes that there are, so that a sanitizer sees what is read beyond them.
        dnc_image image = DNC_IMAGE_INIT;
        image.data = pixels.data();
        image.bytes = pixels.size();
        image.width = std::stoul(words.at(3));
        image.height = std::stoul(words.at(4));
        image.stride = std::stoul(words.at(5));
        image.format = static_cast<dnc_pixels>(std::stoi(words.at(6)));
        image.channels = std::stoul(words.at(7));
        const Preprocessing& p = bundle.preprocessing.value();
        const Image own = Image::from(image);
        std::vector<float> out(p.channels * p.height * p.width);
        p(own, out.data());
        std::vector<std::uint8_t> matched(own.width * own.height * p.channels);
        p.to_bytes(own, matched.data());
        std::ofstream file(words.at(8), std::ios::binary);
        file.write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(float)));
        file.write(reinterpret_cast<const char*>(matched.data()), static_cast<std::streamsize>(matched.size()));
    } else {
        throw Error(DNC_ERROR_ARGUMENT, "unknown command " + command);
    }
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream stream(line);
        std::vector<std::string> words;
        for (std::string word; std::getline(stream, word, '\t');) words.push_back(word);
        try {
            run(words);
        } catch (const Error& error) {
            std::string text = error.what();
            std::replace(text.begin(), text.end(), '\n', ' ');
            std::printf("error %d %s\n", static_cast<int>(error.status()), text.c_str());
        }
        std::cout << std::flush;
        std::printf("end\n");
        std::fflush(stdout);
    }
}

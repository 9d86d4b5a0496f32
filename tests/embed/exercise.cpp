// Every call of dnc.hpp on one engine, from eight threads at once: `exercise ENGINE ROUNDS [HINT]`. Prints "same" if
// each thread had in every round what one thread alone had.

#include <algorithm>
#include <climits>
#include <dnc.hpp>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

std::vector<unsigned char> noise(std::size_t size, unsigned seed) {
    std::vector<unsigned char> bytes(size);
    for (unsigned char& byte : bytes) {
        seed = seed * 1664525u + 1013904223u;
        byte = static_cast<unsigned char>(seed >> 24);
    }
    return bytes;
}

void add(std::vector<float>& all, const std::vector<dnc::Box>& boxes) {
    for (const dnc::Box& box : boxes) {
        all.insert(all.end(), {box.confidence, box.center_x, box.center_y, box.width, box.height,
                               static_cast<float>(box.right)});
        all.push_back(static_cast<float>(box.label.size()));
    }
}

// All that an engine gives for an image, as one list of numbers; in a stream, for a network may have a memory.
std::vector<float> everything(const dnc::Engine& shared, const dnc::Image& image) {
    std::vector<float> all;
    dnc::Engine engine = shared.stream();
    add(all, engine.detect(image, 0.2f));
    engine.reset();
    for (const auto& boxes : engine.detect(std::vector<dnc::Image>{image, image}, 0.2f)) add(all, boxes);
    const std::vector<float> input = engine.preprocess(image);
    std::vector<std::size_t> shape = engine.inputs().front().shape;
    shape[0] = 1;
    const dnc::Outputs outputs = engine.run({{"input", shape, input.data()}});
    for (std::size_t index = 0; index < outputs.size(); ++index) {
        all.insert(all.end(), outputs.data(index), outputs.data(index) + outputs.count(index));
        all.push_back(static_cast<float>(outputs.description(index).shape.size()));
    }
    const dnc::Found found = outputs.postprocess({image}, 0.2f).front();
    add(all, found.boxes);
    all.push_back(static_cast<float>(found.classes.size()));
    return all;
}

template <class Call>
bool fails(Call call) {
    try {
        call();
    } catch (const dnc::Error& error) {
        return error.status() != DNC_OK && !std::string(error.what()).empty();
    }
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) return 2;
    dnc::Options options{2, {}};
    if (argc == 4) options.target["hint"] = argv[3];
    dnc::Engine first(argv[1], options);
    const dnc::Engine engine = std::move(first);
    const std::vector<unsigned char> pixels = noise(64 * 48 * 3, 1);
    // As cv::Mat has them.
    const int columns = 64, rows = 48;
    const dnc::Image image{pixels.data(), columns, rows, DNC_BGR8, 0};
    const std::vector<float> alone = everything(engine, image);
    std::vector<int> same(8, 1);
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < same.size(); ++thread) {
        threads.emplace_back([&, thread] {
            for (int round = 0; round < std::stoi(argv[2]); ++round) {
                if (everything(engine, image) != alone) same[thread] = 0;
                if (!fails([&] { engine.classify(image); }) || !fails([&] { engine.run({}); })) same[thread] = 0;
                if (!fails([&] { engine.detect({pixels.data(), 64, 0}); })) same[thread] = 0;
                if (!fails([&] { engine.detect({pixels.data(), columns, -rows}); })) same[thread] = 0;
                // A C program may hand over any int as an enum.
                for (const int any : {77, 5, -1, INT_MIN, INT_MAX}) {
                    const auto format = static_cast<dnc_pixels>(any);
                    if (!fails([&] { engine.detect({pixels.data(), 64, 48, format, 0}); })) same[thread] = 0;
                    if (!fails([&] { engine.preprocess({pixels.data(), 64, 48, format, 0}); })) same[thread] = 0;
                    const dnc::Array array{"input", {1, 3, 16, 16}, pixels.data(), static_cast<dnc_type>(any)};
                    if (!fails([&] { engine.run({array}); })) same[thread] = 0;
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    if (!fails([] { const dnc::Engine none("/nowhere"); })) same[0] = 0;
    if (!fails([&] { const dnc::Engine none(argv[1], {0, {{"color", "red"}}}); })) same[0] = 0;
    const bool all = std::all_of(same.begin(), same.end(), [](int each) { return each == 1; });
    std::cout << (all && alone.size() > 20 ? "same" : "different") << ' ' << engine.labels().size() << '\n';
}

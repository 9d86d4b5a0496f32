// The engine, a folder or a package: engine.json, read and checked as dnc/runtime/manifest.py does, and the digests of
// its files.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "decode.hpp"
#include "files.hpp"
#include "preprocess.hpp"

namespace dnc_runtime {

using Shape = std::vector<std::size_t>;

// What engine.json says, as far as running the engine needs it.
struct Bundle {
    enum class Decode { host, graph, graph_nms };

    std::string folder;  // or the package's file, or that it is in memory: for messages
    bool packed = false;  // it is a package, whose code runs with trust alone
    std::string name;
    std::string target;
    std::string runner;     // what opens it: the target's name, if engine.json does not say
    Shape input_shape;      // (C, H, W), or (inputs)
    std::size_t batch = 0;  // 0 for any
    std::vector<std::string> outputs;
    std::vector<Shape> output_shapes;  // without the batch axis
    std::optional<Preprocessing> preprocessing;
    bool takes_pixels = false;  // uint8 (N, H, W, C) of any size, in place of float32
    Decode decode = Decode::host;
    std::vector<Head> heads;
    bool window = false;  // with graph_nms: whether the graph wants to know where the image lies in the input
    std::vector<std::pair<std::string, Shape>> states;
    std::vector<std::string> carried;  // those that go on from one image to the next
    std::vector<std::string> labels;             // a name for each class: its number where the engine has none
    std::map<std::string, std::string> options;  // what the target was told
    std::string arithmetic;                      // of the CPUs that its 8-bit numbers are for: see arithmetic.hpp
    std::shared_ptr<Files> files;                // those that engine.json lists

    // Those of the heads that give boxes.
    std::vector<const Head*> box_heads() const;

    // How many classes a result can have.
    std::size_t classes() const;

    // The path of a file of the engine; throws Error unless engine.json lists it.
    std::string path(const std::string& file) const;
};

// Reads and checks a folder, or the file of a package, which is then in memory. Throws Error if it is no engine, is
// damaged, or was made by a newer dnc.
Bundle read_bundle(const std::string& folder);

// Reads and checks a package in memory, which is not copied. `owner` keeps it there, if that is not the caller's affair.
Bundle read_bundle(std::string_view package, const std::string& where, std::shared_ptr<const void> owner = nullptr);

}  // namespace dnc_runtime

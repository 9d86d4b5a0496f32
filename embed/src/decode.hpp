// From the maps of a network's heads to detections and classes: dnc/decode.py in C++, in float and double where Darknet
// has them, so that a comparison with a threshold falls the same way.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "preprocess.hpp"

namespace dnc_runtime {

enum class HeadKind { yolo, gaussian_yolo, region, detection, classifier };
enum class NmsKind { plain, greedynms, diounms };  // cornersnms is plain: what it adds is commented out in Darknet
enum class Point { center, left_top, right_bottom };

// What it takes to read one output; a record of the fields of every kind of head.
struct Head {
    HeadKind kind = HeadKind::classifier;
    std::string kind_name;
    std::string output;
    std::string where;
    std::size_t classes = 0;
    std::vector<std::array<float, 2>> anchors;  // yolo: pixels of the input; region: cells
    std::array<double, 2> input_size{1, 1};
    bool new_coords = false;
    NmsKind nms = NmsKind::plain;
    float beta = 0.6f;
    Point point = Point::center;
    std::vector<std::ptrdiff_t> tree;  // the parent of each node, which comes before it; negative for a root
    float tree_threshold = 0.5f;
    std::vector<std::size_t> map;  // with a tree: the node of each class to report
    int classfix = 0;
    std::size_t side = 0;
    std::size_t num = 0;
    bool sqrt = false;

    bool gives_boxes() const { return kind != HeadKind::classifier; }

    // How many scores a box has.
    std::size_t columns() const { return map.empty() ? classes : map.size(); }
};

// What one head reads of one image: without the batch axis.
struct Map {
    const float* data = nullptr;
    std::vector<std::size_t> shape;
};

struct Detection {
    std::size_t class_id = 0;
    float confidence = 0;
    std::array<float, 4> box{};  // center x, center y, width, height in fractions of the image
};

struct Classification {
    std::size_t class_id = 0;
    float confidence = 0;
};

// Throws Error if a map of this shape does not fit the head.
void check_shape(const Head& head, const std::vector<std::size_t>& shape);

// As many scores of an image over the threshold are suppressed, the best ones: DEFAULT_CANDIDATES in Python.
constexpr std::size_t default_candidates = 100000;

// What one image shows, by descending confidence. `maps` has for each of `heads`, in the order of the cfg and all with
// boxes, what it reads; of their scores the best `limit` are suppressed as the last head says. Throws Error as
// check_shape.
std::vector<Detection> detections(const std::vector<const Head*>& heads, const std::vector<Map>& maps, float confidence,
                                  float iou, std::size_t limit, const BoxTransform& transform);

// As `detections`, of boxes (K, 4) and scores (K, columns) that a graph has decoded.
std::vector<Detection> from_decoded(const Head& last, const float* boxes, const float* scores, std::size_t count,
                                    std::size_t columns, float confidence, float iou, std::size_t limit,
                                    const BoxTransform& transform);

// As `detections`, of rows that a graph has suppressed: number of the image, class, score, box. Throws Error if the
// image has one of a class over `classes`.
std::vector<Detection> from_suppressed(const float* rows, std::size_t count, std::size_t image, std::size_t classes);

// The `top` classes of highest value, of equals the first. Throws Error as check_shape.
std::vector<Classification> best_classes(const Head& head, const Map& map, std::size_t top);

}  // namespace dnc_runtime

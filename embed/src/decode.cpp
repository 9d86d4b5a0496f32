#include "decode.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <tuple>

#include "error.hpp"

#ifdef __FAST_MATH__
#error "the numbers equal Darknet's in IEEE arithmetic alone: compile this file without -ffast-math"
#endif

namespace dnc_runtime {

namespace {

using Box = std::array<float, 4>;

// Boxes on the input, and `columns` scores each; in Darknet's order, by cell and within a cell by anchor.
struct Candidates {
    std::size_t columns = 0;
    std::vector<Box> boxes;
    std::vector<float> scores;

    // Takes a box whose scores, which it has put at the end of `scores`, are not all zero.
    void keep(const Box& box) {
        const auto own = scores.end() - static_cast<std::ptrdiff_t>(columns);
        if (std::any_of(own, scores.end(), [](float score) { return score > 0 || score < 0; })) {
            boxes.push_back(box);
        } else {
            scores.erase(own, scores.end());
        }
    }
};

float above(float score, float threshold) { return score > threshold ? score : 0.0f; }

// e^t * anchor / unit, in double as C's exp makes it.
float exponential(float value, float anchor, double unit) {
    return static_cast<float>(std::exp(static_cast<double>(value)) * static_cast<double>(anchor) / unit);
}

float center(std::size_t cell, float shift, std::size_t cells) {
    return (static_cast<float>(cell) + shift) / static_cast<float>(cells);
}

// [yolo] and [Gaussian_yolo]: the map is (n * (box_channels + 1 + classes), h, w).
void yolo(const Head& head, const Map& map, float threshold, Candidates& found) {
    const bool gaussian = head.kind == HeadKind::gaussian_yolo;
    const std::size_t box_channels = gaussian ? 8 : 4, step = gaussian ? 2 : 1;
    const std::size_t width = map.shape[map.shape.size() - 1], height = map.shape[map.shape.size() - 2];
    const std::size_t area = width * height, channels = box_channels + 1 + head.classes;
    for (std::size_t cell = 0; cell < area; ++cell) {
        for (std::size_t n = 0; n < head.anchors.size(); ++n) {
            const float* values = map.data + n * channels * area + cell;
            const auto at = [values, area](std::size_t channel) { return values[channel * area]; };
            const float objectness = at(box_channels);
            if (!(objectness > threshold)) continue;
            Box box{center(cell % width, at(0), width), center(cell / width, at(step), height), 0, 0};
            for (std::size_t axis = 0; axis < 2; ++axis) {
                const float size = at((2 + axis) * step), anchor = head.anchors[n][axis];
                const double input = head.input_size[axis];
                // [Gaussian_yolo] has no new_coords.
                box[2 + axis] = head.new_coords && !gaussian ? size * size * 4.0f * anchor / static_cast<float>(input)
                                                             : exponential(size, anchor, input);
                if (head.point == Point::left_top) box[axis] += box[2 + axis] / 2.0f;
                if (head.point == Point::right_bottom) box[axis] -= box[2 + axis] / 2.0f;
            }
            const double certainty = gaussian ? 1.0 - static_cast<double>((at(1) + at(3) + at(5) + at(7)) / 4.0f) : 1.0;
            for (std::size_t c = 0; c < head.classes; ++c) {
                const float score = objectness * at(box_channels + 1 + c);
                found.scores.push_back(
                    above(gaussian ? static_cast<float>(static_cast<double>(score) * certainty) : score, threshold));
            }
            found.boxes.push_back(box);
        }
    }
}

// Probabilities given the parent, times those of all ancestors: hierarchy_predictions.
void make_absolute(const Head& head, std::vector<float>& probabilities) {
    for (std::size_t node = 0; node < head.tree.size(); ++node) {
        const std::ptrdiff_t parent = head.tree[node];
        if (parent >= 0) probabilities[node] *= probabilities[static_cast<std::size_t>(parent)];
    }
}

// [region]: the map's memory is (h, w, n, 5 + classes), whatever its shape says.
void region(const Head& head, const Map& map, float threshold, Candidates& found) {
    const std::size_t width = map.shape[map.shape.size() - 1], height = map.shape[map.shape.size() - 2];
    const std::size_t rows = width * height * head.anchors.size();
    std::vector<float> probabilities(head.classes);
    for (std::size_t row = 0; row < rows; ++row) {
        const float* values = map.data + row * (5 + head.classes);
        const float objectness = head.classfix == -1 && values[4] < 0.5f ? 0.0f : values[4];
        if (!head.tree.empty()) {
            if (!(objectness > threshold)) continue;
            std::copy(values + 5, values + 5 + head.classes, probabilities.begin());
            make_absolute(head, probabilities);
            if (head.map.empty()) {
                // One class: the last node that is sure enough. Its score is that probability.
                const std::size_t before = found.scores.size();
                found.scores.resize(before + head.classes, 0.0f);
                for (std::size_t node = head.classes; node-- > 0;) {
                    if (!(probabilities[node] > head.tree_threshold)) continue;
                    found.scores[before + node] = probabilities[node];
                    break;
                }
            } else {
                for (const std::size_t node : head.map) {
                    found.scores.push_back(above(objectness * probabilities[node], threshold));
                }
            }
        } else {
            for (std::size_t c = 0; c < head.classes; ++c) {
                found.scores.push_back(above(objectness * values[5 + c], threshold));
            }
        }
        const std::size_t cell = row / head.anchors.size(), n = row % head.anchors.size();
        const auto logistic = [](float x) { return 1.0f / (1.0f + std::exp(-x)); };
        found.keep({center(cell % width, logistic(values[0]), width), center(cell / width, logistic(values[1]), height),
                    exponential(values[2], head.anchors[n][0], static_cast<double>(width)),
                    exponential(values[3], head.anchors[n][1], static_cast<double>(height))});
    }
}

// [detection], YOLOv1: the classes of all cells, then the objectness of their boxes, then the boxes.
void detection(const Head& head, const Map& map, float threshold, Candidates& found) {
    const std::size_t cells = head.side * head.side;
    const float* objectness = map.data + cells * head.classes;
    const float* boxes = objectness + cells * head.num;
    for (std::size_t row = 0; row < cells * head.num; ++row) {
        const std::size_t cell = row / head.num;
        for (std::size_t c = 0; c < head.classes; ++c) {
            found.scores.push_back(above(objectness[row] * map.data[cell * head.classes + c], threshold));
        }
        const float* box = boxes + 4 * row;
        found.keep({center(cell % head.side, box[0], head.side), center(cell / head.side, box[1], head.side),
                    head.sqrt ? box[2] * box[2] : box[2], head.sqrt ? box[3] * box[3] : box[3]});
    }
}

// As numpy's: what is no number stays so.
float minimum(float one, float other) { return one < other || std::isnan(one) ? one : other; }
float maximum(float one, float other) { return one > other || std::isnan(one) ? one : other; }

struct Overlap {
    NmsKind kind;
    double exponent;

    // box_iou; less (d^2 / c^2) ^ exponent, d the distance of the centers and c the diagonal of the box around both.
    float operator()(const Box& one, const Box& other) const {
        std::array<float, 2> common, span, apart;
        for (std::size_t axis = 0; axis < 2; ++axis) {
            const float low = one[axis] - one[axis + 2] / 2.0f, high = one[axis] + one[axis + 2] / 2.0f;
            const float other_low = other[axis] - other[axis + 2] / 2.0f;
            const float other_high = other[axis] + other[axis + 2] / 2.0f;
            common[axis] = minimum(high, other_high) - maximum(low, other_low);
            span[axis] = maximum(high, other_high) - minimum(low, other_low);
            apart[axis] = one[axis] - other[axis];
        }
        const float intersection = common[0] < 0 || common[1] < 0 ? 0.0f : common[0] * common[1];
        const float joined = one[2] * one[3] + other[2] * other[3] - intersection;
        const auto zero = [](float x) { return std::fpclassify(x) == FP_ZERO; };
        const float iou = zero(intersection) || zero(joined) ? 0.0f : intersection / joined;
        if (kind == NmsKind::plain) return iou;
        const float diagonal = span[0] * span[0] + span[1] * span[1];
        if (zero(diagonal)) return iou;
        const float distance = apart[0] * apart[0] + apart[1] * apart[1];
        // C's pow is the double one; its result becomes a float.
        return iou - static_cast<float>(std::pow(static_cast<double>(distance / diagonal), exponent));
    }
};

// Best first, of equals the first; what is no number last.
bool better(float one, float other) { return one > other || (std::isnan(other) && !std::isnan(one)); }

// Leaves no more than `limit` scores over 0, the best ones; of equal ones the first: best_candidates.
void take_best(Candidates& candidates, std::size_t limit) {
    std::vector<float>& scores = candidates.scores;
    std::vector<std::size_t> places;
    for (std::size_t place = 0; place < scores.size(); ++place) {
        if (scores[place] > 0) places.push_back(place);
    }
    if (places.size() <= limit) return;
    const auto end = places.begin() + static_cast<std::ptrdiff_t>(limit);
    std::nth_element(places.begin(), end, places.end(), [&scores](std::size_t one, std::size_t other) {
        return scores[one] > scores[other] || (!(scores[one] < scores[other]) && one < other);
    });
    std::for_each(end, places.end(), [&scores](std::size_t place) { scores[place] = 0; });
}

// So few boxes are all compared with one another, and so are all under such a threshold.
constexpr std::size_t few = 1024;
constexpr float low_threshold = 0.05f;

// Finds which boxes others may overlap by more than a threshold, without comparing all with all: _Nearby in Python,
// which says why none is lost.
class Nearby {
public:
    Nearby(const std::vector<Box>& boxes, float threshold)
        : boxes_(boxes), kinds_(boxes.size(), Kind::none), ratio_(margin / static_cast<double>(threshold)),
          base_(std::max(2.0, ratio_)) {
        for (std::size_t rank = 0; rank < boxes.size(); ++rank) {
            kinds_[rank] = kind_of(boxes[rank]);
            if (kinds_[rank] == Kind::none) continue;
            alive_.push_back(rank);
            if (kinds_[rank] == Kind::small) {
                small_.push_back(rank);
            } else {
                const std::int64_t level = level_of(boxes[rank]);
                members_.push_back({level, row_of(boxes[rank][1], level), boxes[rank][0], rank});
            }
        }
        std::sort(members_.begin(), members_.end(), before);
    }

    // Tells `visit` the box's neighbours by their places, itself among them.
    template <class Visit>
    void each(std::size_t rank, const Visit& visit) const {
        if (kinds_[rank] == Kind::none) return;
        const std::vector<std::size_t>& others = kinds_[rank] == Kind::small ? alive_ : small_;
        std::for_each(others.begin(), others.end(), visit);
        if (kinds_[rank] == Kind::small) return;
        const double x = boxes_[rank][0], y = boxes_[rank][1], width = boxes_[rank][2], height = boxes_[rank][3];
        const double across = margin * width * (1 + ratio_) / 2 + std::abs(x) * least;
        const std::int64_t own = level_of(boxes_[rank]);
        for (std::int64_t level = own - 1; level <= own + 1; ++level) {
            const double down = margin * (height + tallest(level)) / 2 + std::abs(y) * least;
            const std::int64_t last = row_of(y + down, level);
            for (std::int64_t row = row_of(y - down, level); row <= last; ++row) {
                const Member from{level, row, x - across, 0};
                auto member = std::lower_bound(members_.begin(), members_.end(), from, before);
                for (; member != members_.end() && member->level == level && member->row == row; ++member) {
                    if (member->x > x + across) break;
                    visit(member->rank);
                }
            }
        }
    }

private:
    enum class Kind : unsigned char { none, small, large };
    struct Member {
        std::int64_t level, row;
        double x;
        std::size_t rank;
    };

    static constexpr double margin = 1.15, least = 1.0 / (1 << 17);

    static bool before(const Member& one, const Member& other) {
        return std::tie(one.level, one.row, one.x) < std::tie(other.level, other.row, other.x);
    }

    static Kind kind_of(const Box& box) {
        bool large = true;
        for (std::size_t axis = 0; axis < 2; ++axis) {
            const float center = box[axis], size = box[axis + 2];
            if (!std::isfinite(center) || !std::isfinite(size)) return Kind::none;
            if (!(center - size / 2.0f < center + size / 2.0f)) return Kind::none;
            large = large && static_cast<double>(size) > least * std::abs(static_cast<double>(center));
        }
        const double area = static_cast<double>(box[2]) * static_cast<double>(box[3]);
        return large && area > std::ldexp(1.0, -100) && area < std::ldexp(1.0, 100) ? Kind::large : Kind::small;
    }

    std::int64_t level_of(const Box& box) const {
        return static_cast<std::int64_t>(std::floor(std::log(static_cast<double>(box[3])) / std::log(base_)));
    }

    double tallest(std::int64_t level) const { return std::pow(base_, static_cast<double>(level) + 1); }

    std::int64_t row_of(double y, std::int64_t level) const {
        constexpr double most = 1 << 20;
        return static_cast<std::int64_t>(std::clamp(std::floor(y / tallest(level)), -most, most - 1));
    }

    const std::vector<Box>& boxes_;
    std::vector<Kind> kinds_;
    double ratio_, base_;
    std::vector<std::size_t> alive_, small_;
    std::vector<Member> members_;
};

// Sets the scores to 0 that a higher score of the same class suppresses: non_maximum_suppression.
void suppress(Candidates& candidates, const Head& last, float threshold) {
    const Overlap overlap{last.nms, last.nms == NmsKind::greedynms ? 0.6 : static_cast<double>(last.beta)};
    // Darknet sorts its boxes in place for one class after the other: equal scores keep the order of the class before.
    std::vector<std::size_t> order(candidates.boxes.size()), ranked, others;
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t c = 0; c < candidates.columns; ++c) {
        const auto score = [&candidates, c](std::size_t box) -> float& {
            return candidates.scores[box * candidates.columns + c];
        };
        ranked.clear();
        others.clear();
        for (const std::size_t box : order) (score(box) > 0 ? ranked : others).push_back(box);
        if (ranked.empty()) continue;
        std::stable_sort(ranked.begin(), ranked.end(),
                         [&score](std::size_t one, std::size_t other) { return score(one) > score(other); });
        order = ranked;
        order.insert(order.end(), others.begin(), others.end());
        std::vector<Box> boxes;
        for (const std::size_t box : ranked) boxes.push_back(candidates.boxes[box]);
        std::unique_ptr<const Nearby> nearby;
        if (boxes.size() > few && threshold >= low_threshold) nearby = std::make_unique<Nearby>(boxes, threshold);
        for (std::size_t i = 0; i < boxes.size(); ++i) {
            if (!(score(ranked[i]) > 0)) continue;
            const auto compare = [&](std::size_t j) {
                const bool left = j > i && score(ranked[j]) > 0;
                if (left && overlap(boxes[i], boxes[j]) > threshold) score(ranked[j]) = 0;
            };
            if (nearby) {
                nearby->each(i, compare);
            } else {
                for (std::size_t j = i + 1; j < boxes.size(); ++j) compare(j);
            }
        }
    }
}

void rank(std::vector<Detection>& found) {
    std::stable_sort(found.begin(), found.end(), [](const Detection& one, const Detection& other) {
        return better(one.confidence, other.confidence);
    });
}

std::vector<Detection> finish(Candidates& candidates, const Head& last, float confidence, float iou, std::size_t limit,
                              const BoxTransform& transform) {
    take_best(candidates, limit);
    for (Box& box : candidates.boxes) box = transform(box);
    suppress(candidates, last, iou);
    std::vector<Detection> found;
    for (std::size_t box = 0; box < candidates.boxes.size(); ++box) {
        for (std::size_t c = 0; c < candidates.columns; ++c) {
            const float score = candidates.scores[box * candidates.columns + c];
            if (score > confidence) found.push_back({c, score, candidates.boxes[box]});
        }
    }
    rank(found);
    return found;
}

}  // namespace

void check_shape(const Head& head, const std::vector<std::size_t>& shape) {
    std::string sides;
    for (const std::size_t side : shape) sides += (sides.empty() ? "" : ", ") + std::to_string(side);
    const auto refuse = [&](const std::string& why) {
        throw Error(DNC_ERROR_ENGINE, "output '" + head.output + "' of shape (" + sides + ") " + why, head.where);
    };
    // The limits of bundle.cpp, and what fits into memory, keep these products below 2^64.
    std::uint64_t given = 1;
    for (const std::size_t side : shape) given *= side;
    if (head.kind == HeadKind::classifier || head.kind == HeadKind::detection) {
        const std::uint64_t cells = std::uint64_t{head.side} * head.side;
        const std::uint64_t wanted =
            head.kind == HeadKind::classifier ? head.classes : cells * (head.classes + 5 * head.num);
        if (given != wanted) refuse("is not " + std::to_string(wanted) + " values");
        return;
    }
    if (shape.size() < 3 || given == 0) refuse("has no grid");
    const std::uint64_t area = std::uint64_t{shape[shape.size() - 1]} * shape[shape.size() - 2];
    const std::uint64_t channels = (head.kind == HeadKind::gaussian_yolo ? 9 : 5) + head.classes;
    if (given != area * head.anchors.size() * channels) {
        refuse("does not fit " + std::to_string(head.anchors.size()) + " anchors and " + std::to_string(head.classes) +
               " classes");
    }
}

std::vector<Detection> detections(const std::vector<const Head*>& heads, const std::vector<Map>& maps, float confidence,
                                  float iou, std::size_t limit, const BoxTransform& transform) {
    const Head& last = *heads.back();
    Candidates candidates;
    candidates.columns = last.columns();
    for (std::size_t place = 0; place < heads.size(); ++place) {
        const Head& head = *heads[place];
        check_shape(head, maps[place].shape);
        const auto decode = head.kind == HeadKind::region      ? region
                            : head.kind == HeadKind::detection ? detection
                                                               : yolo;
        decode(head, maps[place], confidence, candidates);
    }
    return finish(candidates, last, confidence, iou, limit, transform);
}

std::vector<Detection> from_decoded(const Head& last, const float* boxes, const float* scores, std::size_t count,
                                    std::size_t columns, float confidence, float iou, std::size_t limit,
                                    const BoxTransform& transform) {
    Candidates candidates;
    candidates.columns = columns;
    for (std::size_t place = 0; place < count; ++place) {
        for (std::size_t c = 0; c < columns; ++c) {
            candidates.scores.push_back(above(scores[place * columns + c], confidence));
        }
        const float* box = boxes + 4 * place;
        candidates.keep({box[0], box[1], box[2], box[3]});
    }
    return finish(candidates, last, confidence, iou, limit, transform);
}

std::vector<Detection> from_suppressed(const float* rows, std::size_t count, std::size_t image, std::size_t classes) {
    std::vector<Detection> found;
    for (const float* row = rows; row != rows + 7 * count; row += 7) {
        const auto own = static_cast<float>(image);
        if (!(row[0] >= own && row[0] <= own)) continue;
        if (!(row[1] >= 0 && row[1] < static_cast<float>(classes))) {
            throw Error(DNC_ERROR_TARGET,
                        "the engine gave class " + std::to_string(row[1]) + " of " + std::to_string(classes));
        }
        found.push_back({static_cast<std::size_t>(row[1]), row[2], {row[3], row[4], row[5], row[6]}});
    }
    rank(found);
    return found;
}

std::vector<Classification> best_classes(const Head& head, const Map& map, std::size_t top) {
    check_shape(head, map.shape);
    std::vector<float> values(map.data, map.data + head.classes);
    make_absolute(head, values);
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&values](std::size_t one, std::size_t other) { return better(values[one], values[other]); });
    std::vector<Classification> best;
    for (const std::size_t index : order) {
        if (best.size() == top) break;
        best.push_back({index, values[index]});
    }
    return best;
}

}  // namespace dnc_runtime

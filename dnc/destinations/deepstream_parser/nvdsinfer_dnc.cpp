// Reads the boxes of a network that dnc exported, for DeepStream's Gst-nvinfer (parse-bbox-func-name).
//
// Its one output is (boxes, 6) of float32: left, top, right, bottom in pixels of the network's input, the score of the
// best class, and the number of that class. What is left here, Gst-nvinfer suppresses by its IoU (cluster-mode=2); where
// the network wants another overlap, the Makefile has DNC_IOU and DNC_EXPONENT, and it is done here (cluster-mode=4).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <type_traits>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

constexpr unsigned int row_length = 6;

bool holds_boxes(const NvDsInferLayerInfo& layer) {
    const NvDsInferDims& dims = layer.inferDims;
    return layer.dataType == FLOAT && layer.buffer != nullptr && dims.numDims == 2 && dims.d[1] == row_length &&
           dims.numElements / row_length == dims.d[0] && dims.numElements % row_length == 0;
}

float within(float place, unsigned int side) {
    return std::min(std::max(place, 0.0f), static_cast<float>(side));
}

#ifdef DNC_EXPONENT
// IoU - (d^2 / c^2) ^ exponent of two rows, where d is the distance of the centers, and c the diagonal of the smallest box
// around both; Darknet's boxes are fractions of the width and the height.
float overlap(const float* one, const float* other, const NvDsInferNetworkInfo& network) {
    const float sides[2] = {static_cast<float>(network.width), static_cast<float>(network.height)};
    float common = 1, area = 1, other_area = 1, distance = 0, diagonal = 0;
    for (unsigned int axis = 0; axis < 2; ++axis) {
        const float low = one[axis] / sides[axis], high = one[axis + 2] / sides[axis];
        const float other_low = other[axis] / sides[axis], other_high = other[axis + 2] / sides[axis];
        common *= std::max(std::min(high, other_high) - std::max(low, other_low), 0.0f);
        area *= high - low;
        other_area *= other_high - other_low;
        const float apart = (low + high) / 2 - (other_low + other_high) / 2;
        const float span = std::max(high, other_high) - std::min(low, other_low);
        distance += apart * apart;
        diagonal += span * span;
    }
    const float iou = common > 0 ? common / (area + other_area - common) : 0.0f;
    return diagonal > 0 ? iou - static_cast<float>(std::pow(distance / diagonal, DNC_EXPONENT)) : iou;
}

// Drops what a better row of its class overlaps by more than DNC_IOU.
void suppress(std::vector<const float*>& rows, const NvDsInferNetworkInfo& network) {
    std::stable_sort(rows.begin(), rows.end(), [](const float* one, const float* other) { return one[4] > other[4]; });
    std::vector<const float*> kept;
    for (const float* row : rows) {
        const auto covers = [&](const float* better) {
            return better[5] == row[5] && overlap(better, row, network) > DNC_IOU;
        };
        if (std::none_of(kept.begin(), kept.end(), covers)) kept.push_back(row);
    }
    rows.swap(kept);
}
#endif

}  // namespace

extern "C" bool NvDsInferParseDnc(const std::vector<NvDsInferLayerInfo>& outputLayersInfo,
                                  const NvDsInferNetworkInfo& networkInfo,
                                  const NvDsInferParseDetectionParams& detectionParams,
                                  std::vector<NvDsInferObjectDetectionInfo>& objectList) {
    const auto layer = std::find_if(outputLayersInfo.begin(), outputLayersInfo.end(), holds_boxes);
    if (layer == outputLayersInfo.end()) {
        std::fprintf(stderr, "NvDsInferParseDnc: no output is (boxes, %u) of float32\n", row_length);
        return false;
    }
    const std::vector<float>& thresholds = detectionParams.perClassPreclusterThreshold;
    const std::size_t classes = std::min<std::size_t>(thresholds.size(), detectionParams.numClassesConfigured);
    const float* row = static_cast<const float*>(layer->buffer);
    std::vector<const float*> rows;
    for (unsigned int box = 0; box < layer->inferDims.d[0]; ++box, row += row_length) {
        // Written so that what is not a number fails.
        if (!(row[5] >= 0 && row[5] < static_cast<float>(classes))) continue;
        if (row[4] > thresholds[static_cast<std::size_t>(row[5])]) rows.push_back(row);
    }
#ifdef DNC_EXPONENT
    suppress(rows, networkInfo);
#endif
    for (const float* found : rows) {
        // DeepStream 9 has a rotation besides, which stays 0.
        NvDsInferObjectDetectionInfo object{};
        object.classId = static_cast<unsigned int>(found[5]);
        object.detectionConfidence = found[4];
        // Gst-nvinfer drops boxes that begin above the frame or end below it.
        object.left = within(found[0], networkInfo.width);
        object.top = within(found[1], networkInfo.height);
        object.width = within(found[2], networkInfo.width) - object.left;
        object.height = within(found[3], networkInfo.height) - object.top;
        if (object.width > 0 && object.height > 0) objectList.push_back(object);
    }
    return true;
}

static_assert(std::is_convertible<decltype(&NvDsInferParseDnc), NvDsInferParseCustomFunc>::value,
              "DeepStream calls parsers with other arguments");

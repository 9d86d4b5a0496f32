// Reads the boxes of a network that dnc exported, for DeepStream's Gst-nvinfer (parse-bbox-func-name).
//
// Its one output is (boxes, 6) of float32: left, top, right, bottom in pixels of the network's input, the score of the
// best class, and the number of that class. What is left here, Gst-nvinfer suppresses (cluster-mode=2).

#include <algorithm>
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
    for (unsigned int box = 0; box < layer->inferDims.d[0]; ++box, row += row_length) {
        // Written so that what is not a number fails.
        const float score = row[4], number = row[5];
        if (!(number >= 0 && number < static_cast<float>(classes))) continue;
        const auto classId = static_cast<unsigned int>(number);
        if (!(score > thresholds[classId])) continue;
        // DeepStream 9 has a rotation besides, which stays 0.
        NvDsInferObjectDetectionInfo object{};
        object.classId = classId;
        object.detectionConfidence = score;
        // Gst-nvinfer drops boxes that begin above the frame or end below it.
        object.left = within(row[0], networkInfo.width);
        object.top = within(row[1], networkInfo.height);
        object.width = within(row[2], networkInfo.width) - object.left;
        object.height = within(row[3], networkInfo.height) - object.top;
        if (object.width > 0 && object.height > 0) objectList.push_back(object);
    }
    return true;
}

static_assert(std::is_convertible<decltype(&NvDsInferParseDnc), NvDsInferParseCustomFunc>::value,
              "DeepStream calls parsers with other arguments");

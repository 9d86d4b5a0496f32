// Calls a parser of boxes as Gst-nvinfer does, for ctypes. The parser's file is compiled with it.

#include <cstddef>

#include "nvdsinfer_custom_impl.h"

extern "C" bool PARSER(const std::vector<NvDsInferLayerInfo>&, const NvDsInferNetworkInfo&,
                       const NvDsInferParseDetectionParams&, std::vector<NvDsInferObjectDetectionInfo>&);

// The output is `type` of the shape `sides` (numDims of them). Boxes become rows of class, left, top, width, height,
// confidence, rotation, no more than `room`. Returns how many there are; -1 if the parser refuses.
extern "C" long parse(void* buffer, int type, unsigned int dims, const unsigned int* sides, unsigned int elements,
                      unsigned int width, unsigned int height, unsigned int classes, const float* thresholds,
                      std::size_t known, float* rows, std::size_t room) {
    NvDsInferLayerInfo layer{};
    layer.dataType = static_cast<NvDsInferDataType>(type);
    layer.inferDims.numDims = dims;
    for (unsigned int axis = 0; axis < NVDSINFER_MAX_DIMS && axis < dims; ++axis) layer.inferDims.d[axis] = sides[axis];
    layer.inferDims.numElements = elements;
    layer.layerName = "output";
    layer.buffer = buffer;
    NvDsInferParseDetectionParams params{};
    params.numClassesConfigured = classes;
    params.perClassPreclusterThreshold.assign(thresholds, thresholds + known);
    std::vector<NvDsInferObjectDetectionInfo> objects;
    if (!PARSER({layer}, {width, height, 3}, params, objects)) return -1;
    for (std::size_t index = 0; index < objects.size() && index < room; ++index) {
        const NvDsInferObjectDetectionInfo& object = objects[index];
        float* row = rows + 7 * index;
        row[0] = static_cast<float>(object.classId);
        row[1] = object.left;
        row[2] = object.top;
        row[3] = object.width;
        row[4] = object.height;
        row[5] = object.detectionConfidence;
#if DEEPSTREAM >= 9
        row[6] = object.rotation_angle;
#else
        row[6] = 0;
#endif
    }
    return static_cast<long>(objects.size());
}

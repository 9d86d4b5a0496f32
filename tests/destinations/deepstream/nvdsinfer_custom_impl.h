// A stand-in for DeepStream's header of this name: of its declarations, those that a parser of boxes meets, written
// after NVIDIA's API reference. DEEPSTREAM 9 has a rotation, which boxes of 8 and before lack.

#pragma once

#include <vector>

#define NVDSINFER_MAX_DIMS 8

extern "C" {

typedef struct {
    unsigned int numDims;
    unsigned int d[NVDSINFER_MAX_DIMS];
    unsigned int numElements;
} NvDsInferDims;

typedef enum { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 } NvDsInferDataType;

typedef struct {
    NvDsInferDataType dataType;
    union {
        NvDsInferDims inferDims;
        NvDsInferDims dims __attribute__((deprecated("inferDims")));
    };
    int bindingIndex;
    const char* layerName;
    void* buffer;
    int isInput;
} NvDsInferLayerInfo;

typedef struct {
    unsigned int width;
    unsigned int height;
    unsigned int channels;
} NvDsInferNetworkInfo;

typedef struct {
    unsigned int classId;
    float left;
    float top;
    float width;
    float height;
    float detectionConfidence;
#if DEEPSTREAM >= 9
    float rotation_angle;
#endif
} NvDsInferObjectDetectionInfo;

typedef NvDsInferObjectDetectionInfo NvDsInferParseObjectInfo;

typedef struct {
    unsigned int numClassesConfigured;
    std::vector<float> perClassPreclusterThreshold;
    std::vector<float> perClassPostclusterThreshold;
    std::vector<float>& perClassThreshold = perClassPreclusterThreshold;
} NvDsInferParseDetectionParams;

typedef bool (*NvDsInferParseCustomFunc)(const std::vector<NvDsInferLayerInfo>& outputLayersInfo,
                                         const NvDsInferNetworkInfo& networkInfo,
                                         const NvDsInferParseDetectionParams& detectionParams,
                                         std::vector<NvDsInferObjectDetectionInfo>& objectList);
}

/* dnc.h: runs engines that `dnc compile` wrote. The C interface of libdnc_runtime.
 *
 *     #include <stdio.h>
 *     #include <dnc.h>
 *
 *     int show(const unsigned char* rgb, size_t width, size_t height)
 *     {
 *         dnc_engine* engine = NULL;
 *         dnc_results* results = NULL;
 *         dnc_image image = DNC_IMAGE_INIT;
 *         dnc_detection box = DNC_DETECTION_INIT;
 *         size_t i;
 *         image.data = rgb, image.bytes = width * height * 3, image.width = width, image.height = height;
 *         if (dnc_open("yolov4-tiny.engine", NULL, &engine) || dnc_detect(engine, &image, 1, 0.25f, 0.45f, &results))
 *             fprintf(stderr, "%s\n", dnc_last_error());
 *         for (i = 0; dnc_results_detection(results, 0, i, &box) == DNC_OK; i++)
 *             printf("%s %.2f at %d %d %d %d\n", box.label, box.confidence, box.left, box.top, box.right, box.bottom);
 *         dnc_results_free(results);
 *         dnc_close(engine);
 *         return results != NULL ? 0 : 1;
 *     }
 *
 * Rules that hold for all of it:
 *
 *     errors      A call that can fail gives a dnc_status; what was wrong is then in dnc_last_error(), for the thread
 *                 that called. What a call was to make is NULL after it failed. No exception comes out.
 *     threads     One engine may be used from any number of threads at once; a handle is freed once, when no thread
 *                 uses it any more. There is no global state but the last error of each thread.
 *     lifetimes   Text and arrays that a call gives belong to the handle they were asked of. Results and outputs may
 *                 outlive their engine. Freeing NULL does nothing.
 *     memory      A network with recurrent layers takes images for the frames of one sequence, as one process of Darknet's
 *                 does ([history] too: at inference each image is its first). A handle remembers those of its
 *                 dnc_detect and dnc_classify, several images of one call in their order; dnc_reset forgets them. Such
 *                 calls of several threads have the memory one after the other, in the order in which they come to it,
 *                 and one that fails leaves it as it was. For each camera, dnc_open_stream makes a handle with a memory
 *                 of its own. dnc_run remembers nothing: states are among its inputs and outputs.
 *     growth      Structs start with their size, which their _INIT sets: a newer library fills no more than the
 *                 program knows. Functions are added, and none is changed, while DNC_ABI stays the same.
 *     warnings    dnc_open writes one to stderr where an engine with 8-bit numbers runs on a CPU of another kind than it
 *                 was compiled for, which costs accuracy.
 *     text        UTF-8.
 *
 * C89; and C++, for which dnc.hpp is more convenient.
 */
#ifndef DNC_H
#define DNC_H

#include <stddef.h>

#define DNC_VERSION "0.1.0"
#define DNC_ABI 1

#if defined(_WIN32) && defined(DNC_BUILDING)
#define DNC_API __declspec(dllexport)
#elif defined(__GNUC__)
#define DNC_API __attribute__((visibility("default")))
#else
#define DNC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* A program may hand over any int where one of these is asked for, which is then refused; C++ has to be told so. */
#if defined(__cplusplus) && __cplusplus >= 201103L
#define DNC_ENUM : int
#else
#define DNC_ENUM
#endif

typedef enum dnc_status DNC_ENUM {
    DNC_OK = 0,
    DNC_ERROR_ARGUMENT = 1, /* the call makes no sense: NULL, another shape, an index out of range */
    DNC_ERROR_ENGINE = 2,   /* the folder or package is no engine, is damaged, or was made by a newer dnc */
    DNC_ERROR_TARGET = 3,   /* this library cannot run the engine's target, or the target's own library refuses */
    DNC_ERROR_IMAGE = 4,    /* the image does not fit the network, or its sizes contradict each other */
    DNC_ERROR_MEMORY = 5,   /* there is not enough memory */
    DNC_ERROR_INTERNAL = 6  /* a bug of the library */
} dnc_status;

typedef enum dnc_type DNC_ENUM { DNC_FLOAT32 = 0, DNC_UINT8 = 1 } dnc_type;

/* What a pixel is in memory: its channels in this order, each of 8 bits (white is 255), of 16 bits (65535) or float32 (1,
 * as in Darknet's own images), in the machine's byte order, at any address. A pixel of MANY has dnc_image.channels of
 * them, in the network's order. */
typedef enum dnc_pixels DNC_ENUM {
    DNC_RGB8 = 0,
    DNC_BGR8 = 1,
    DNC_GRAY8 = 2,
    DNC_RGBA8 = 3,
    DNC_BGRA8 = 4,
    DNC_MANY8 = 5,
    DNC_RGB16 = 6,
    DNC_BGR16 = 7,
    DNC_GRAY16 = 8,
    DNC_RGBA16 = 9,
    DNC_BGRA16 = 10,
    DNC_MANY16 = 11,
    DNC_RGBF32 = 12,
    DNC_BGRF32 = 13,
    DNC_GRAYF32 = 14,
    DNC_RGBAF32 = 15,
    DNC_BGRAF32 = 16,
    DNC_MANYF32 = 17
} dnc_pixels;

/* What an engine gives. */
typedef enum dnc_task DNC_ENUM {
    DNC_TASK_ARRAYS = 0,  /* the network's outputs: dnc_run */
    DNC_TASK_DETECT = 1,  /* boxes: dnc_detect */
    DNC_TASK_CLASSIFY = 2 /* classes of the whole image: dnc_classify */
} dnc_task;

#undef DNC_ENUM

/* In a shape: a side of any length. */
#ifdef __cplusplus
#define DNC_ANY (static_cast<size_t>(-1))
#else
#define DNC_ANY ((size_t)-1)
#endif

typedef struct dnc_engine dnc_engine;
typedef struct dnc_results dnc_results;
typedef struct dnc_outputs dnc_outputs;

typedef struct dnc_open_options {
    size_t size;
    int threads;                /* how many threads one run uses; 0: the engine's own choice */
    const char* const* options; /* "KEY=VALUE" for the target, ended by NULL, as "device=GPU"; or NULL */
    size_t max_candidates;      /* dnc_detect suppresses the best so many scores of an image; 0: 100000 */
    int trust;                  /* 1: a package's machine code (target tvm) may run, which may do all that you may */
} dnc_open_options;
#define DNC_OPEN_OPTIONS_INIT {sizeof(dnc_open_options), 0, NULL, 0, 0}

typedef struct dnc_image {
    size_t size;
    const void* data; /* the first row on top */
    size_t bytes;     /* how many there are at data */
    size_t width;     /* in pixels */
    size_t height;
    size_t stride; /* bytes from a row to the next; 0: rows follow one another without a gap */
    dnc_pixels format;
    size_t channels; /* of a pixel of MANY; 0: as the format says */
} dnc_image;
#define DNC_IMAGE_INIT {sizeof(dnc_image), NULL, 0, 0, 0, 0, DNC_RGB8, 0}

/* An input or an output: what it has to be, or one with its numbers, in C order. */
typedef struct dnc_array {
    size_t size;
    const char* name;
    dnc_type type;
    size_t rank;
    const size_t* shape; /* rank sides, the batch first */
    const void* data;    /* NULL in a description */
    size_t bytes;        /* how many there are at data */
} dnc_array;
#define DNC_ARRAY_INIT {sizeof(dnc_array), NULL, DNC_FLOAT32, 0, NULL, NULL, 0}

typedef struct dnc_head {
    size_t size;
    const char* kind;   /* yolo, gaussian_yolo, region, detection, classifier */
    const char* output; /* what it reads, where boxes are decoded outside of the graph */
    const char* where;  /* the section it comes from, as "yolov3.cfg:607 [yolo] #82" */
    size_t classes;
} dnc_head;
#define DNC_HEAD_INIT {sizeof(dnc_head), NULL, NULL, NULL, 0}

typedef struct dnc_detection {
    size_t size;
    int class_id;
    const char* label; /* the class's number where the engine has no labels */
    float confidence;
    float center_x; /* like the next three a fraction of the image's size; a box may reach out of the image */
    float center_y;
    float width;
    float height;
    int left; /* whole pixels of the image, clipped; right and bottom are included */
    int top;
    int right;
    int bottom;
} dnc_detection;
#define DNC_DETECTION_INIT {sizeof(dnc_detection), 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct dnc_classification {
    size_t size;
    int class_id;
    const char* label;
    float confidence;
} dnc_classification;
#define DNC_CLASSIFICATION_INIT {sizeof(dnc_classification), 0, NULL, 0}

/* The library's DNC_VERSION and DNC_ABI, which may be newer than those of this header. */
DNC_API const char* dnc_version(void);
DNC_API int dnc_abi(void);

/* The targets whose engines this library runs, as "openvino, tvm". */
DNC_API const char* dnc_targets(void);

/* What the last call of this thread that failed had to say: what is wrong, where, and a hint, in up to three lines;
 * and its status. "" and DNC_OK if none has failed. */
DNC_API const char* dnc_last_error(void);
DNC_API dnc_status dnc_last_status(void);

/* Opens the folder that `dnc compile` wrote, or the file that `dnc package` made of it, which is read into memory: checks
 * every file against its sha256, and loads the network. `options` may be NULL. Target openvino takes device=CPU|GPU|NPU|AUTO..., hint=latency|throughput and cache=FOLDER, where it keeps
 * what it compiled (which starts 2 to 4 times faster then; nothing is written unless asked for). */
DNC_API dnc_status dnc_open(const char* folder, const dnc_open_options* options, dnc_engine** engine);

/* As dnc_open, for a package that is in memory: the bytes of such a file, or what `dnc package --as-c` made part of the
 * program. Nothing is copied and no file is written: the bytes have to stay where they are, and as they are, until
 * dnc_close of the engine and of its streams; what is part of a program always does. At an address that 64 divides,
 * libraries read weights where they lie; at others they may copy them. A TVM engine's libraries become files in memory
 * (Linux), elsewhere temporary ones, as long as the engine is open. */
DNC_API dnc_status dnc_open_memory(const void* data, size_t bytes, const dnc_open_options* options,
                                   dnc_engine** engine);
DNC_API void dnc_close(dnc_engine* engine);

/* Another handle of an engine, which loads nothing again: what one camera sees, for a network with memory. It begins with
 * none; all functions take it; dnc_close frees it, before or after the engine that it was made of. */
DNC_API dnc_status dnc_open_stream(const dnc_engine* engine, dnc_engine** stream);

/* Forgets what a network with memory has seen through this handle: its states are zero again. */
DNC_API dnc_status dnc_reset(dnc_engine* engine);

/* What the engine is. Of NULL: "", 0, DNC_TASK_ARRAYS. */
DNC_API const char* dnc_engine_name(const dnc_engine* engine);
DNC_API const char* dnc_engine_target(const dnc_engine* engine);
DNC_API const char* dnc_engine_device(const dnc_engine* engine);
DNC_API dnc_task dnc_engine_task(const dnc_engine* engine);
DNC_API size_t dnc_engine_classes(const dnc_engine* engine);
/* The name of a class, its number if it has none; NULL if there is no such class. */
DNC_API const char* dnc_engine_label(const dnc_engine* engine, size_t class_id);

/* What dnc_run takes and gives: the image first, then the states of recurrent layers and, with boxes suppressed in the
 * graph, the thresholds. Outputs: the heads' in the order of the cfg, then each state's successor under the state's
 * name. DNC_ERROR_ARGUMENT past the last one. */
DNC_API size_t dnc_engine_input_count(const dnc_engine* engine);
DNC_API dnc_status dnc_engine_input(const dnc_engine* engine, size_t index, dnc_array* description);
DNC_API size_t dnc_engine_output_count(const dnc_engine* engine);
DNC_API dnc_status dnc_engine_output(const dnc_engine* engine, size_t index, dnc_array* description);
DNC_API size_t dnc_engine_head_count(const dnc_engine* engine);
DNC_API dnc_status dnc_engine_head(const dnc_engine* engine, size_t index, dnc_head* head);

/* Makes the first input, without the batch axis, of an image: (channels, height, width) float32 at the network's size;
 * or, for an engine that was compiled with --input u8, (height, width, channels) bytes at the image's. `needed`, unless
 * NULL, is set to its bytes; with `out` NULL that is all that is done, else `bytes` has to be as many. */
DNC_API dnc_status dnc_preprocess(const dnc_engine* engine, const dnc_image* image, void* out, size_t bytes,
                                  size_t* needed);

/* Runs the network on arrays, which are read where they lie. States that are not given are zero; thresholds that are
 * not given are 0.25 and 0.45. */
DNC_API dnc_status dnc_run(const dnc_engine* engine, const dnc_array* inputs, size_t count, dnc_outputs** outputs);
DNC_API size_t dnc_outputs_count(const dnc_outputs* outputs);
DNC_API dnc_status dnc_outputs_get(const dnc_outputs* outputs, size_t index, dnc_array* array);
DNC_API void dnc_outputs_free(dnc_outputs* outputs);

/* Boxes of images, by descending confidence: those over `confidence` (Darknet's -thresh, 0.25), of which
 * non-maximum suppression drops what overlaps a better one by more than `iou` (Darknet's nms, 0.45). DNC_ERROR_ARGUMENT
 * where confidence is nan, or iou not from 0 to 1. */
DNC_API dnc_status dnc_detect(const dnc_engine* engine, const dnc_image* images, size_t count, float confidence,
                              float iou, dnc_results** results);

/* The `top` best classes of images. */
DNC_API dnc_status dnc_classify(const dnc_engine* engine, const dnc_image* images, size_t count, size_t top,
                                dnc_results** results);

/* The boxes or, of a network without any, the `top` best classes that outputs of dnc_run are of: of each image of the
 * batch, of which `width` and `height` alone are looked at. Of an engine that was compiled with --decode graph+nms,
 * confidence, iou and the place of an image in the input (`window`) are inputs of dnc_run, and not looked at here. */
DNC_API dnc_status dnc_postprocess(const dnc_outputs* outputs, const dnc_image* images, size_t count, float confidence,
                                   float iou, size_t top, dnc_results** results);

/* How many there are of an image, and one of them. DNC_ERROR_ARGUMENT past the last one, which is no error that
 * dnc_last_error() keeps; and for detections of classes, or the other way round. */
DNC_API size_t dnc_results_count(const dnc_results* results, size_t image);
DNC_API dnc_status dnc_results_detection(const dnc_results* results, size_t image, size_t index,
                                         dnc_detection* detection);
DNC_API dnc_status dnc_results_classification(const dnc_results* results, size_t image, size_t index,
                                              dnc_classification* classification);
DNC_API void dnc_results_free(dnc_results* results);

#ifdef __cplusplus
}
#endif

#endif

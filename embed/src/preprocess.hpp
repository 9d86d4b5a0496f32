// From an image to the input of a network, and from boxes on the input back to the image: dnc/preprocess.py in C++,
// operation for operation, so that equal pixels give equal bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dnc.h"

namespace dnc_runtime {

// Sides over this are refused: no camera has them, and products of three stay below 2^63.
constexpr std::size_t max_side = std::size_t{1} << 20;

// Channels over that as well: products of a side, another and these, of four bytes each, still do.
constexpr std::size_t max_channels = std::size_t{1} << 16;

// An image that lies somewhere in memory.
struct Image {
    // The channels of a pixel: 8 bits, 16 bits, float32; not aligned.
    enum class Sample { byte, word, real };

    const std::uint8_t* data = nullptr;
    std::size_t width = 0;
    std::size_t height = 0;
    std::size_t stride = 0;    // bytes from a row to the next
    std::size_t channels = 0;  // of a pixel
    Sample sample = Sample::byte;
    bool swapped = false;  // blue before red

    // Throws Error where the sizes contradict each other.
    static Image from(const dnc_image& image);

    // Throws Error if there is no image of this width and height.
    static void check_sides(const dnc_image& image);
};

// Maps boxes on the network's input to boxes on the image, both in fractions, center and size.
struct BoxTransform {
    std::array<double, 2> offset{0, 0};
    std::array<double, 2> ratio{1, 1};

    std::array<float, 4> operator()(const std::array<float, 4>& box) const;
};

struct Preprocessing {
    enum class Mode { resize, resize_half_pixel, letterbox, center_crop };

    std::size_t width = 0;
    std::size_t height = 0;
    std::size_t channels = 3;
    Mode mode = Mode::resize;
    bool bgr = false;
    bool bicubic = false;
    double scale = 1.0 / 255;
    std::vector<float> mean{0.0f};  // one, or one for each channel
    std::vector<float> std{1.0f};
    double crop = 1;

    // Writes (channels, height, width) floats. Throws Error if the image's channels cannot be matched.
    void operator()(const Image& image, float* output) const;

    // Writes (image.height, image.width, channels) bytes in RGB order, for an engine that does its own preprocessing. Of
    // 16 bits the upper byte is kept; floats are rounded and clipped.
    void to_bytes(const Image& image, std::uint8_t* output) const;

    // Whether to_bytes would write what lies in memory already.
    bool matches(const Image& image) const;

    BoxTransform transform(std::size_t image_width, std::size_t image_height) const;
};

}  // namespace dnc_runtime

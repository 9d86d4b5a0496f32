#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.hpp"

#ifdef __FAST_MATH__
#error "the numbers equal Darknet's in IEEE arithmetic alone: compile this file without -ffast-math"
#endif

namespace dnc_runtime {

namespace {

// Before it is cropped, an image may have more rows than a 32-bit machine has bytes.
using Index = std::uint64_t;

// Where a channel of the network is found in a pixel.
struct Plane {
    enum class Kind { byte, luma, opaque } kind = Kind::byte;
    std::size_t offset = 0;
};

// Matched as stb_image does for Darknet: see Preprocessing.match_channels in dnc/preprocess.py.
std::vector<Plane> planes_of(const Image& image, std::size_t want) {
    const std::size_t have = image.channels;
    std::vector<Plane> planes;
    for (std::size_t channel = 0; channel < want; ++channel) {
        Plane plane;
        plane.offset = have == 1 ? 0 : image.swapped && channel < 3 ? 2 - channel : channel;
        if (channel == 3 && have < 4) plane.kind = Plane::Kind::opaque;
        if (want == 1 && have >= 3) plane.kind = Plane::Kind::luma;
        planes.push_back(plane);
    }
    return planes;
}

// One channel of the image, row by row.
class Rows {
public:
    Rows(const Image& image, const Plane& plane) : image_(image), plane_(plane) {
        if (plane.kind != Plane::Kind::byte) made_.assign(image.width, 255);
    }

    // The bytes of a row, `step()` apart; they last until the next call.
    const std::uint8_t* operator()(std::size_t row) {
        const std::uint8_t* pixels = image_.data + row * image_.stride;
        if (plane_.kind == Plane::Kind::byte) return pixels + plane_.offset;
        if (plane_.kind == Plane::Kind::luma) {
            const std::size_t red = image_.swapped ? 2 : 0;
            for (std::size_t x = 0; x < image_.width; ++x, pixels += image_.channels) {
                made_[x] =
                    static_cast<std::uint8_t>((77u * pixels[red] + 150u * pixels[1] + 29u * pixels[2 - red]) >> 8);
            }
        }
        return made_.data();
    }

    std::size_t step() const { return plane_.kind == Plane::Kind::byte ? image_.channels : 1; }

private:
    const Image& image_;
    const Plane& plane_;
    std::vector<std::uint8_t> made_;
};

// Where an axis is sampled: output i is the weighted sum of the inputs first[i] and second[i].
struct Samples {
    std::vector<std::size_t> first, second;
    std::vector<float> first_weight, second_weight;

    void add(std::size_t one, std::size_t source, float one_weight, float other_weight) {
        first.push_back(std::min(one, source - 1));
        second.push_back(std::min(one + 1, source - 1));
        first_weight.push_back(one_weight);
        second_weight.push_back(other_weight);
    }
};

// The places of resize_image. Its last column is the image's; its last row lacks the second half of the sum.
Samples aligned(std::size_t source, Index target, const std::vector<Index>& places, bool columns) {
    const float steps = static_cast<float>(std::max<Index>(target - 1, 1));
    const float scale = static_cast<float>(source - 1) / steps;
    Samples samples;
    for (const Index place : places) {
        const float position = static_cast<float>(place) * scale;
        const auto first = static_cast<std::size_t>(position);
        const float weight = position - static_cast<float>(first);
        const bool last = place == target - 1;
        if (last && columns) {
            samples.add(source - 1, source, 1, 0);
        } else {
            samples.add(first, source, 1.0f - weight, last ? 0.0f : weight);
        }
    }
    return samples;
}

// cv::resize INTER_LINEAR: pixel centers at half, the border repeated.
Samples half_pixel(std::size_t source, std::size_t target) {
    const double ratio = static_cast<double>(source) / static_cast<double>(target);
    Samples samples;
    for (std::size_t place = 0; place < target; ++place) {
        const double centered = (static_cast<double>(place) + 0.5) * ratio - 0.5;
        const double position = std::min(std::max(centered, 0.0), static_cast<double>(source - 1));
        const auto first = static_cast<std::size_t>(position);
        const auto weight = static_cast<float>(position - static_cast<double>(first));
        samples.add(first, source, 1.0f - weight, weight);
    }
    return samples;
}

std::vector<Index> all(Index length) {
    std::vector<Index> places;
    for (Index place = 0; place < length; ++place) places.push_back(place);
    return places;
}

// C's division truncates.
std::int64_t crop_start(Index length, Index kept) {
    return (static_cast<std::int64_t>(length) - static_cast<std::int64_t>(kept)) / 2;
}

// The middle `kept` places of `length`: crop_image, which repeats the border where there are fewer.
std::vector<Index> middle(Index length, Index kept) {
    const std::int64_t start = crop_start(length, kept), end = static_cast<std::int64_t>(length) - 1;
    std::vector<Index> places;
    for (std::int64_t place = start; place < start + static_cast<std::int64_t>(kept); ++place) {
        places.push_back(static_cast<Index>(std::min(std::max<std::int64_t>(place, 0), end)));
    }
    return places;
}

// The size that the image is brought to, before it is padded or cropped.
struct Size {
    Index width, height;
};

Size new_size(const Preprocessing& p, Index image_width, Index image_height) {
    if (p.mode == Preprocessing::Mode::letterbox) {
        const float across = static_cast<float>(p.width) / static_cast<float>(image_width);
        const float down = static_cast<float>(p.height) / static_cast<float>(image_height);
        // Where Darknet rounds the short side of an extremely narrow image to nothing, a pixel of it stays.
        if (across < down) return {p.width, std::max<Index>(1, image_height * p.width / image_width)};
        return {std::max<Index>(1, image_width * p.height / image_height), p.height};
    }
    if (p.mode == Preprocessing::Mode::center_crop) {
        // Python rounds halves to even, and so does nearbyint.
        const auto shorter = static_cast<Index>(std::nearbyint(static_cast<double>(p.width) / p.crop));
        if (image_width < image_height) return {shorter, image_height * shorter / image_width};
        return {image_width * shorter / image_height, shorter};
    }
    return {p.width, p.height};
}

void bilinear(const Preprocessing& p, const Image& image, const std::vector<Plane>& planes, float divisor,
              float* output) {
    const bool rounds = p.mode == Preprocessing::Mode::resize_half_pixel;
    const Size size = new_size(p, image.width, image.height);
    Samples columns, rows;
    std::size_t left = 0, top = 0;
    if (rounds) {
        columns = half_pixel(image.width, p.width);
        rows = half_pixel(image.height, p.height);
    } else if (p.mode == Preprocessing::Mode::center_crop) {
        columns = aligned(image.width, size.width, middle(size.width, p.width), true);
        rows = aligned(image.height, size.height, middle(size.height, p.height), false);
    } else {
        columns = aligned(image.width, size.width, all(size.width), true);
        rows = aligned(image.height, size.height, all(size.height), false);
        left = (p.width - columns.first.size()) / 2;
        top = (p.height - rows.first.size()) / 2;
    }
    const std::size_t area = p.width * p.height, width = columns.first.size();
    std::fill(output, output + p.channels * area, 127.5f / divisor);
    // cv::resize gives 8-bit pixels, so there they are divided at the end.
    std::array<float, 256> values;
    for (std::size_t pixel = 0; pixel < values.size(); ++pixel) {
        values[pixel] = rounds ? static_cast<float>(pixel) : static_cast<float>(pixel) / divisor;
    }
    constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
    for (std::size_t channel = 0; channel < p.channels; ++channel) {
        Rows source(image, planes[channel]);
        std::vector<std::size_t> ones(width), others(width);
        for (std::size_t x = 0; x < width; ++x) {
            ones[x] = columns.first[x] * source.step();
            others[x] = columns.second[x] * source.step();
        }
        // The last two rows of the image that were needed, interpolated across.
        std::array<std::vector<float>, 2> parts{std::vector<float>(width), std::vector<float>(width)};
        std::array<std::size_t, 2> held{none, none};
        const auto part = [&](std::size_t row, std::size_t other) {
            for (std::size_t slot = 0; slot < 2; ++slot) {
                if (held[slot] == row) return slot;
            }
            const std::size_t slot = held[0] == other ? 1 : 0;
            const std::uint8_t* bytes = source(row);
            float* across = parts[slot].data();
            for (std::size_t x = 0; x < width; ++x) {
                across[x] = values[bytes[ones[x]]] * columns.first_weight[x] +
                            values[bytes[others[x]]] * columns.second_weight[x];
            }
            held[slot] = row;
            return slot;
        };
        for (std::size_t y = 0; y < rows.first.size(); ++y) {
            const float* above = parts[part(rows.first[y], rows.second[y])].data();
            const float* below = parts[part(rows.second[y], rows.first[y])].data();
            const float above_weight = rows.first_weight[y], below_weight = rows.second_weight[y];
            float* line = output + channel * area + (top + y) * p.width + left;
            for (std::size_t x = 0; x < width; ++x) line[x] = above[x] * above_weight + below[x] * below_weight;
            if (rounds) {
                for (std::size_t x = 0; x < width; ++x) line[x] = std::floor(line[x] + 0.5f) / divisor;
            }
        }
    }
}

constexpr int cubic_bits = 22;

// The weights of one output pixel in 1 / 2^22, for the source's pixels from `first` on.
struct Cubic {
    std::size_t first = 0;
    std::vector<std::int64_t> weights;
};

std::vector<Cubic> cubic(std::size_t source, Index target, const std::vector<Index>& places) {
    const double ratio = static_cast<double>(source) / static_cast<double>(target), wide = std::max(ratio, 1.0);
    std::vector<Cubic> samples;
    for (const Index place : places) {
        const double center = (static_cast<double>(place) + 0.5) * ratio;
        Cubic sample;
        sample.first = static_cast<std::size_t>(std::max(center - 2 * wide, 0.0));
        const std::size_t last = std::min(static_cast<std::size_t>(center + 2 * wide) + 1, source);
        std::vector<double> exact;
        double sum = 0;
        for (std::size_t pixel = sample.first; pixel < last; ++pixel) {
            const double x = std::abs(static_cast<double>(pixel) + 0.5 - center) / wide;
            const double near = ((1.5 * x - 2.5) * x) * x + 1, far = ((2.5 - 0.5 * x) * x - 4) * x + 2;
            exact.push_back(x < 1 ? near : x < 2 ? far : 0);
            sum += exact.back();
        }
        for (const double weight : exact) {
            sample.weights.push_back(static_cast<std::int64_t>(std::nearbyint(weight / sum * (1 << cubic_bits))));
        }
        samples.push_back(std::move(sample));
    }
    return samples;
}

// The weighted sum of bytes `step` apart, rounded to a byte.
std::uint8_t cubic_sum(const Cubic& sample, const std::uint8_t* bytes, std::size_t step) {
    std::int64_t sum = std::int64_t{1} << (cubic_bits - 1);
    bytes += sample.first * step;
    for (const std::int64_t weight : sample.weights) {
        sum += weight * *bytes;
        bytes += step;
    }
    return static_cast<std::uint8_t>(std::min<std::int64_t>(std::max<std::int64_t>(sum, 0) >> cubic_bits, 255));
}

void bicubic(const Preprocessing& p, const Image& image, const std::vector<Plane>& planes, float divisor,
             float* output) {
    const Size size = new_size(p, image.width, image.height);
    const std::vector<Cubic> across = cubic(image.width, size.width, middle(size.width, p.width));
    std::vector<Cubic> down = cubic(image.height, size.height, middle(size.height, p.height));
    std::size_t first = image.height, last = 0;
    for (const Cubic& sample : down) {
        first = std::min(first, sample.first);
        last = std::max(last, sample.first + sample.weights.size());
    }
    for (Cubic& sample : down) sample.first -= first;
    std::vector<std::uint8_t> narrow((last - first) * p.width);
    for (std::size_t channel = 0; channel < p.channels; ++channel) {
        Rows source(image, planes[channel]);
        for (std::size_t row = first; row < last; ++row) {
            const std::uint8_t* bytes = source(row);
            std::uint8_t* line = narrow.data() + (row - first) * p.width;
            for (std::size_t x = 0; x < p.width; ++x) line[x] = cubic_sum(across[x], bytes, source.step());
        }
        for (std::size_t y = 0; y < p.height; ++y) {
            for (std::size_t x = 0; x < p.width; ++x) {
                *output++ = static_cast<float>(cubic_sum(down[y], narrow.data() + x, p.width)) / divisor;
            }
        }
    }
}

}  // namespace

void Image::check_sides(const dnc_image& image) {
    if (image.width < 1 || image.height < 1 || image.width > max_side || image.height > max_side) {
        const std::string sides = std::to_string(image.width) + "x" + std::to_string(image.height);
        throw Error(DNC_ERROR_IMAGE, "an image of " + sides + " pixels", "", "sides are 1 to " + std::to_string(max_side));
    }
}

Image Image::from(const dnc_image& image) {
    const auto refuse = [](const std::string& what) { throw Error(DNC_ERROR_IMAGE, what); };
    Image out;
    switch (image.format) {
        case DNC_GRAY8: out.channels = 1; break;
        case DNC_RGB8:
        case DNC_BGR8: out.channels = 3; break;
        case DNC_RGBA8:
        case DNC_BGRA8: out.channels = 4; break;
        default: refuse("format " + std::to_string(static_cast<int>(image.format)) + " of an image is unknown");
    }
    out.swapped = image.format == DNC_BGR8 || image.format == DNC_BGRA8;
    check_sides(image);
    const std::string sides = std::to_string(image.width) + "x" + std::to_string(image.height);
    const std::size_t row = image.width * out.channels;
    out.stride = image.stride == 0 ? row : image.stride;
    const std::string have = std::to_string(image.bytes) + " bytes are no image of " + sides + " pixels, ";
    const bool fits = out.stride >= row && image.bytes >= row &&
                      (image.height == 1 || (image.bytes - row) / (image.height - 1) >= out.stride);
    if (!fits) refuse(have + std::to_string(out.channels) + " bytes each and " + std::to_string(out.stride) + " a row");
    if (image.data == nullptr) throw Error(DNC_ERROR_ARGUMENT, "the image's data is NULL");
    out.data = image.data;
    out.width = image.width;
    out.height = image.height;
    return out;
}

std::array<float, 4> BoxTransform::operator()(const std::array<float, 4>& box) const {
    std::array<float, 4> mapped;
    for (std::size_t axis = 0; axis < 2; ++axis) {
        // Darknet divides the centers in double, but multiplies the sizes by a float reciprocal.
        const auto span = static_cast<float>(ratio[axis]);
        mapped[axis] = static_cast<float>((static_cast<double>(box[axis]) - offset[axis]) / static_cast<double>(span));
        mapped[axis + 2] = box[axis + 2] * (1.0f / span);
    }
    return mapped;
}

void Preprocessing::operator()(const Image& image, float* output) const {
    std::vector<Plane> planes = planes_of(image, channels);
    if (bgr) std::swap(planes[0], planes[2]);
    // Division by 255 rounds as Darknet's does; multiplication by 1/255 would not.
    const auto divisor = static_cast<float>(1 / scale);
    (bicubic ? dnc_runtime::bicubic : dnc_runtime::bilinear)(*this, image, planes, divisor, output);
    const auto none = [](const std::vector<float>& numbers, float neutral) {
        return std::all_of(numbers.begin(), numbers.end(),
                           [neutral](float number) { return !(number < neutral || number > neutral); });
    };
    if (none(mean, 0) && none(std, 1)) return;
    const std::size_t area = width * height;
    for (std::size_t channel = 0; channel < channels; ++channel) {
        const float shift = mean[mean.size() == 1 ? 0 : channel], by = std[std.size() == 1 ? 0 : channel];
        float* plane = output + channel * area;
        for (std::size_t place = 0; place < area; ++place) plane[place] = (plane[place] - shift) / by;
    }
}

void Preprocessing::match_channels(const Image& image, std::uint8_t* output) const {
    const std::vector<Plane> planes = planes_of(image, channels);
    for (std::size_t channel = 0; channel < channels; ++channel) {
        Rows source(image, planes[channel]);
        for (std::size_t y = 0; y < image.height; ++y) {
            const std::uint8_t* bytes = source(y);
            std::uint8_t* line = output + y * image.width * channels + channel;
            for (std::size_t x = 0; x < image.width; ++x) line[x * channels] = bytes[x * source.step()];
        }
    }
}

bool Preprocessing::matches(const Image& image) const {
    return image.channels == channels && !image.swapped && image.stride == image.width * image.channels;
}

BoxTransform Preprocessing::transform(std::size_t image_width, std::size_t image_height) const {
    const Size size = new_size(*this, image_width, image_height);
    const auto share = [](auto part, std::size_t whole) {
        return static_cast<double>(part) / static_cast<double>(whole);
    };
    BoxTransform out;
    out.ratio = {share(size.width, width), share(size.height, height)};
    if (mode == Mode::letterbox) {
        // The picture is put at a whole pixel, but correct_yolo_boxes halves the padding exactly.
        out.offset = {static_cast<double>(width - size.width) / 2 / static_cast<double>(width),
                      static_cast<double>(height - size.height) / 2 / static_cast<double>(height)};
    } else if (mode == Mode::center_crop) {
        out.offset = {share(-crop_start(size.width, width), width), share(-crop_start(size.height, height), height)};
    }
    return out;
}

}  // namespace dnc_runtime

#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "error.hpp"

#ifdef __FAST_MATH__
#error "the numbers equal Darknet's in IEEE arithmetic alone: compile this file without -ffast-math"
#endif

namespace dnc_runtime {

namespace {

// Before it is cropped, an image may have more rows than a 32-bit machine has bytes.
using Index = std::uint64_t;

// What white is in samples of each type, and how one is read, wherever it lies.
template <class Sample>
constexpr double white = 255;
template <>
constexpr double white<std::uint16_t> = 65535;
template <>
constexpr double white<float> = 1;

template <class Sample>
Sample load(const std::uint8_t* place) {
    Sample sample;
    std::memcpy(&sample, place, sizeof sample);
    return sample;
}

template <class Body>
void with_samples(const Image& image, const Body& body) {
    switch (image.sample) {
        case Image::Sample::byte: body(std::uint8_t{}); break;
        case Image::Sample::word: body(std::uint16_t{}); break;
        case Image::Sample::real: body(float{}); break;
    }
}

// Where a channel of the network is found in a pixel.
struct Plane {
    enum class Kind { stored, luma, opaque } kind = Kind::stored;
    std::size_t offset = 0;  // in channels
};

// Matched as stb_image does for Darknet: see Preprocessing.match_channels in dnc/runtime/preprocessing.py.
std::vector<Plane> planes_of(const Image& image, std::size_t want) {
    const std::size_t have = image.channels;
    if (have != want && ((have != 1 && have != 3 && have != 4) || want > 4)) {
        throw Error(DNC_ERROR_IMAGE, "the image has " + std::to_string(have) + " channels, the network takes " +
                                         std::to_string(want));
    }
    std::vector<Plane> planes;
    for (std::size_t channel = 0; channel < want; ++channel) {
        Plane plane;
        plane.offset = image.swapped && channel < 3 ? 2 - channel : channel;
        if (have != want) {
            const bool alpha = (want == 2 || want == 4) && channel == want - 1;
            if (alpha) {
                plane.offset = 3;
                if (have < 4) plane.kind = Plane::Kind::opaque;
            } else if (have == 1) {
                plane.offset = 0;
            } else if (want <= 2) {
                plane.kind = Plane::Kind::luma;
            }
        }
        planes.push_back(plane);
    }
    return planes;
}

std::uint8_t luma(std::uint8_t red, std::uint8_t green, std::uint8_t blue) {
    return static_cast<std::uint8_t>((77u * red + 150u * green + 29u * blue) >> 8);
}

std::uint16_t luma(std::uint16_t red, std::uint16_t green, std::uint16_t blue) {
    return static_cast<std::uint16_t>((77u * red + 150u * green + 29u * blue) >> 8);
}

float luma(float red, float green, float blue) { return (red * 77.0f + green * 150.0f + blue * 29.0f) / 256.0f; }

std::uint8_t byte_of(std::uint8_t sample) { return sample; }

std::uint8_t byte_of(std::uint16_t sample) { return static_cast<std::uint8_t>(sample >> 8); }

std::uint8_t byte_of(float sample) {
    return static_cast<std::uint8_t>(std::min(std::max(std::floor(sample * 255.0f + 0.5f), 0.0f), 255.0f));
}

// One channel of the image, row by row.
template <class Sample>
class Rows {
public:
    Rows(const Image& image, const Plane& plane) : image_(image), plane_(plane) {
        if (plane.kind != Plane::Kind::stored) made_.assign(image.width, static_cast<Sample>(white<Sample>));
    }

    // Where the samples of a row lie, `step()` bytes apart; they last until the next call.
    const std::uint8_t* operator()(std::size_t row) {
        const std::uint8_t* pixels = image_.data + row * image_.stride;
        if (plane_.kind == Plane::Kind::stored) return pixels + plane_.offset * sizeof(Sample);
        if (plane_.kind == Plane::Kind::luma) {
            const std::size_t red = image_.swapped ? 2 : 0;
            const auto at = [&pixels](std::size_t channel) { return load<Sample>(pixels + channel * sizeof(Sample)); };
            for (std::size_t x = 0; x < image_.width; ++x, pixels += image_.channels * sizeof(Sample)) {
                made_[x] = luma(at(red), at(1), at(2 - red));
            }
        }
        return reinterpret_cast<const std::uint8_t*>(made_.data());
    }

    std::size_t step() const { return (plane_.kind == Plane::Kind::stored ? image_.channels : 1) * sizeof(Sample); }

private:
    const Image& image_;
    const Plane& plane_;
    std::vector<Sample> made_;
};

// Throws Error where a float is no number.
void check_finite(const Image& image) {
    if (image.sample != Image::Sample::real) return;
    for (std::size_t y = 0; y < image.height; ++y) {
        const std::uint8_t* row = image.data + y * image.stride;
        for (std::size_t x = 0; x < image.width * image.channels; ++x) {
            if (!std::isfinite(load<float>(row + x * sizeof(float)))) {
                throw Error(DNC_ERROR_IMAGE, "the image has numbers that are not finite");
            }
        }
    }
}

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

template <class Sample>
void bilinear(const Preprocessing& p, const Image& image, const std::vector<Plane>& planes, float divisor,
              float* output) {
    const bool half = p.mode == Preprocessing::Mode::resize_half_pixel;
    // cv::resize gives pixels of the type that it was given: where they are whole they are divided at the end.
    const bool rounds = half && !std::is_same<Sample, float>::value;
    const Size size = new_size(p, image.width, image.height);
    Samples columns, rows;
    std::size_t left = 0, top = 0;
    if (half) {
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
    std::fill(output, output + p.channels * area, 127.5f / static_cast<float>(1 / p.scale));
    std::array<float, 256> values;
    for (std::size_t pixel = 0; pixel < values.size(); ++pixel) {
        values[pixel] = rounds ? static_cast<float>(pixel) : static_cast<float>(pixel) / divisor;
    }
    const auto value = [&](const std::uint8_t* place) {
        const Sample sample = load<Sample>(place);
        if constexpr (std::is_same<Sample, std::uint8_t>::value) {
            return values[sample];
        } else {
            return rounds ? static_cast<float>(sample) : static_cast<float>(sample) / divisor;
        }
    };
    constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
    for (std::size_t channel = 0; channel < p.channels; ++channel) {
        Rows<Sample> source(image, planes[channel]);
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
                across[x] = value(bytes + ones[x]) * columns.first_weight[x] +
                            value(bytes + others[x]) * columns.second_weight[x];
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

// The weighted sum of samples `step` bytes apart: of whole ones rounded and clipped to a sample; of floats in this order.
template <class Sample>
Sample cubic_sum(const Cubic& sample, const std::uint8_t* bytes, std::size_t step) {
    bytes += sample.first * step;
    if constexpr (std::is_same<Sample, float>::value) {
        double sum = 0;
        for (const std::int64_t weight : sample.weights) {
            sum += static_cast<double>(load<float>(bytes)) * static_cast<double>(weight);
            bytes += step;
        }
        return static_cast<float>(sum / (1 << cubic_bits));
    } else {
        std::int64_t sum = std::int64_t{1} << (cubic_bits - 1);
        for (const std::int64_t weight : sample.weights) {
            sum += weight * load<Sample>(bytes);
            bytes += step;
        }
        const auto most = static_cast<std::int64_t>(white<Sample>);
        return static_cast<Sample>(std::min<std::int64_t>(std::max<std::int64_t>(sum, 0) >> cubic_bits, most));
    }
}

template <class Sample>
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
    std::vector<Sample> narrow((last - first) * p.width);
    for (std::size_t channel = 0; channel < p.channels; ++channel) {
        Rows<Sample> source(image, planes[channel]);
        for (std::size_t row = first; row < last; ++row) {
            const std::uint8_t* bytes = source(row);
            Sample* line = narrow.data() + (row - first) * p.width;
            for (std::size_t x = 0; x < p.width; ++x) line[x] = cubic_sum<Sample>(across[x], bytes, source.step());
        }
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(narrow.data());
        for (std::size_t y = 0; y < p.height; ++y) {
            for (std::size_t x = 0; x < p.width; ++x) {
                const auto sum = cubic_sum<Sample>(down[y], bytes + x * sizeof(Sample), p.width * sizeof(Sample));
                *output++ = static_cast<float>(sum) / divisor;
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
    const auto format = static_cast<int>(image.format);
    if (format < DNC_RGB8 || format > DNC_MANYF32) refuse("format " + std::to_string(format) + " of an image is unknown");
    // Six orders of channels, for each of three types.
    constexpr int orders = DNC_RGB16 - DNC_RGB8;
    constexpr std::size_t usual[] = {3, 3, 1, 4, 4, 0}, sizes[] = {1, 2, 4};
    const int order = format % orders;
    out.sample = static_cast<Sample>(format / orders);
    out.channels = order == DNC_MANY8 ? image.channels : usual[order];
    if (out.channels < 1 || out.channels > max_channels || (image.channels != 0 && image.channels != out.channels)) {
        refuse("an image of " + std::to_string(image.channels) + " channels in format " + std::to_string(format));
    }
    out.swapped = order == DNC_BGR8 || order == DNC_BGRA8;
    check_sides(image);
    const std::string sides = std::to_string(image.width) + "x" + std::to_string(image.height);
    const std::size_t pixel = out.channels * sizes[format / orders];
    const std::size_t row = image.width * pixel;
    out.stride = image.stride == 0 ? row : image.stride;
    const std::string have = std::to_string(image.bytes) + " bytes are no image of " + sides + " pixels, ";
    const bool fits = row / pixel == image.width && out.stride >= row && image.bytes >= row &&
                      (image.height == 1 || (image.bytes - row) / (image.height - 1) >= out.stride);
    if (!fits) refuse(have + std::to_string(pixel) + " bytes each and " + std::to_string(out.stride) + " a row");
    if (image.data == nullptr) throw Error(DNC_ERROR_ARGUMENT, "the image's data is NULL");
    out.data = static_cast<const std::uint8_t*>(image.data);
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
    check_finite(image);
    if (bgr) std::swap(planes[0], planes[2]);
    with_samples(image, [&](auto sample) {
        using Sample = decltype(sample);
        // Division by 255 rounds as Darknet's does; multiplication by 1/255 would not.
        const auto divisor = static_cast<float>(white<Sample> / 255 / scale);
        (bicubic ? dnc_runtime::bicubic<Sample> : dnc_runtime::bilinear<Sample>)(*this, image, planes, divisor, output);
    });
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

void Preprocessing::to_bytes(const Image& image, std::uint8_t* output) const {
    const std::vector<Plane> planes = planes_of(image, channels);
    check_finite(image);
    with_samples(image, [&](auto kind) {
        using Sample = decltype(kind);
        for (std::size_t channel = 0; channel < channels; ++channel) {
            Rows<Sample> source(image, planes[channel]);
            for (std::size_t y = 0; y < image.height; ++y) {
                const std::uint8_t* bytes = source(y);
                std::uint8_t* line = output + y * image.width * channels + channel;
                for (std::size_t x = 0; x < image.width; ++x) {
                    line[x * channels] = byte_of(load<Sample>(bytes + x * source.step()));
                }
            }
        }
    });
}

bool Preprocessing::matches(const Image& image) const {
    return image.sample == Image::Sample::byte && image.channels == channels && !image.swapped &&
           image.stride == image.width * image.channels;
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

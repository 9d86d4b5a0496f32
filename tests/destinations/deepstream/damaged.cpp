// Outputs whose sizes and numbers are anything at all: nothing may be read beyond the memory that there is.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "nvdsinfer_custom_impl.h"

extern "C" long parse(void* buffer, int type, unsigned int dims, const unsigned int* sides, unsigned int elements,
                      unsigned int width, unsigned int height, unsigned int classes, const float* thresholds,
                      std::size_t known, float* rows, std::size_t room);

namespace {

std::uint32_t state = 1;

std::uint32_t random_bits() {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

unsigned int any_of(std::initializer_list<unsigned int> values) {
    return values.begin()[random_bits() % values.size()];
}

}  // namespace

int main() {
    const float thresholds[4] = {0.0f, 0.1f, 0.5f, 2.0f};
    float rows[7 * 4];
    for (int round = 0; round < 100000; ++round) {
        const unsigned int boxes = random_bits() % 5, elements = boxes * 6;
        // Of this size to the byte, so that the sanitizer sees what is read beyond.
        const std::unique_ptr<float[]> output(new float[elements]);
        for (unsigned int index = 0; index < elements; ++index) {
            const std::uint32_t bits = random_bits();
            std::memcpy(&output[index], &bits, sizeof bits);
            if (bits % 2 != 0) output[index] = static_cast<float>(bits % 64) / 4.0f;
        }
        const unsigned int sides[8] = {any_of({boxes, boxes, boxes + 1, 0u, 715827883u, ~0u}), any_of({6u, 6u, 5u, 0u})};
        // What says how many numbers there are is never larger than they are: of that, a parser could not know.
        const unsigned int said = any_of({elements, elements, elements / 2, 0u});
        const unsigned int classes = any_of({4u, 4u, 0u, 1u, ~0u});
        const std::size_t known = any_of({4u, 4u, 0u, 2u});
        parse(output.get(), static_cast<int>(any_of({0u, 0u, 1u})), any_of({2u, 2u, 0u, 1u, 3u, 8u, ~0u}), sides, said,
              any_of({64u, 0u, ~0u}), 32, classes, thresholds, known, rows, 4);
    }
    return 0;
}

// SHA-256 (FIPS 180-4), for the digests in engine.json.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace dnc_runtime {

class Sha256 {
public:
    void update(const void* data, std::size_t size);

    // The digest in hexadecimal, of all that was given; nothing may follow.
    std::string finish();

private:
    void compress(const unsigned char* block);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> rest_{};
    std::uint64_t size_ = 0;
};

}  // namespace dnc_runtime

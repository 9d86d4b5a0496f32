#include "arithmetic.hpp"

#include <array>
#include <cstdlib>
#include <string_view>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#define DNC_X86
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#include "error.hpp"

namespace dnc_runtime {

namespace {

struct Isa {
    std::string_view name;
    bool saturates;  // products are added in pairs, in 16 bits
};

constexpr std::array<Isa, 9> isas{{{"amx", false},
                                   {"avx512vnni", false},
                                   {"avxvnni", false},
                                   {"avx512", true},
                                   {"avx2", true},
                                   {"sse", true},
                                   {"i8mm", false},
                                   {"dotprod", false},
                                   {"neon", false}}};

#ifdef DNC_X86
bool bit(unsigned number, unsigned place) { return (number >> place & 1U) != 0; }

// Registers EAX, EBX, ECX, EDX of a leaf; 0 where the CPU has no such leaf.
std::array<unsigned, 4> cpuid(unsigned leaf, unsigned part) {
    std::array<unsigned, 4> found{};
#ifdef _MSC_VER
    int own[4];
    __cpuid(own, 0);
    if (static_cast<unsigned>(own[0]) < leaf) return found;
    __cpuidex(own, static_cast<int>(leaf), static_cast<int>(part));
    for (std::size_t index = 0; index < 4; ++index) found[index] = static_cast<unsigned>(own[index]);
#else
    __get_cpuid_count(leaf, part, &found[0], &found[1], &found[2], &found[3]);
#endif
    return found;
}
#endif

// This machine's, as Python names it. aarch64 adds exactly, whatever it has besides.
std::string_view this_isa() {
    const char* told = std::getenv("DNC_ISA");
    if (told != nullptr && *told != '\0') return told;
#ifdef DNC_X86
    // Leaf 7: AVX2, AVX512F, AVX512-VNNI, AMX-INT8; and AVX-VNNI in its second part.
    const std::array<unsigned, 4> first = cpuid(7, 0), second = cpuid(7, 1);
    if (bit(first[3], 25)) return "amx";
    if (bit(first[2], 11)) return "avx512vnni";
    if (bit(second[0], 4)) return "avxvnni";
    if (bit(first[1], 16)) return "avx512";
    return bit(first[1], 5) ? "avx2" : "sse";
#else
    return "neon";
#endif
}

}  // namespace

std::string loss(const Bundle& bundle) {
    const auto precision = bundle.options.find("precision");
    const bool eight = precision != bundle.options.end() && (precision->second == "int8" || precision->second == "mixed");
    if (bundle.arithmetic.empty() && !eight) return "";
    const std::string isa(this_isa());
    bool known = false, saturates = false;
    for (const Isa& each : isas) {
        if (each.name != isa) continue;
        known = true;
        saturates = each.saturates;
    }
    if (!known) {
        throw Error(DNC_ERROR_TARGET, "DNC_ISA=" + isa + " is no instruction set that dnc knows of", "",
                    "as avx2, avx512vnni or dotprod");
    }
    const bool pairs = bundle.arithmetic == "pairs";
    if (saturates == pairs || bundle.arithmetic == "unknown") return "";
    const std::string what =
        pairs ? "the engine was made for CPUs that cut sums of 8-bit products off at 16 bits, and this one adds them up "
                "exactly: it is right, but its weights are coarser than they have to be"
              : "the engine was made for CPUs that add up 8-bit products exactly, and this one cuts sums off at 16 bits "
                "(there is no VNNI): what it finds may be wrong";
    return what + "\n  at " + bundle.folder + "\n  hint: compile it again here, or elsewhere with --option isa=" + isa;
}

}  // namespace dnc_runtime

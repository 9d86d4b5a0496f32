#include "package.hpp"

#include <algorithm>
#include <cstdint>

#include "error.hpp"
#include "json.hpp"

namespace dnc_runtime {

namespace {

constexpr const char* damaged = "the package is damaged: ask for it again, or make it again with `dnc package`";
constexpr std::size_t max_directory = std::size_t{4} << 20;
constexpr std::size_t end_size = 22, entry_size = 46, header_size = 30;
constexpr std::size_t max_tail = (std::size_t{1} << 16) + 42;  // what the directory's end and its comment may take
constexpr std::uint32_t max_version = 63;                      // as zipfile has it
constexpr std::uint32_t kinds = 0170000, ordinary = 0100000;   // of files, as POSIX counts them

// A number of some bytes, the lowest first. The caller knows that they are there.
std::uint32_t number(std::string_view data, std::size_t at, std::size_t bytes) {
    std::uint32_t value = 0;
    for (std::size_t place = bytes; place-- > 0;) value = value << 8 | static_cast<unsigned char>(data[at + place]);
    return value;
}

bool starts(std::string_view data, std::size_t at, std::string_view with) {
    return at <= data.size() && data.substr(at, with.size()) == with;
}

// Where the record is that ends the directory.
std::size_t find_end(std::string_view data, const std::string& where) {
    const std::size_t skipped = data.size() - std::min(data.size(), max_tail);
    const std::size_t at = data.rfind(std::string_view("PK\5\6", 4));
    if (at == std::string_view::npos || at < skipped || data.size() - at < end_size) {
        throw Error(DNC_ERROR_ENGINE,
                    starts(data, 0, "PK\3\4") ? "the package is cut off" : "not an engine: a file that is no package",
                    where, "an engine is what `dnc compile` and `dnc package` write");
    }
    // With 4 GiB at most it needs no record of ZIP64.
    const bool large = at >= 20 && starts(data, at - 20, "PK\6\7");
    if (data.size() > max_package || number(data, at + 12, 4) > max_directory || large) {
        throw Error(DNC_ERROR_ENGINE, "the package is too large to be an engine", where, damaged);
    }
    return at;
}

// A member, as the directory has it.
struct Member {
    std::string name;
    std::uint32_t version, flags, method, packed, size, attributes, offset;

    // What is wrong with its kind; empty if nothing.
    std::string fault() const {
        const std::uint32_t kind = attributes >> 16 & kinds;
        if (!name.empty() && (name.back() == '/' || (kind != 0 && kind != ordinary))) {
            return name + " is a folder, a link or a device";
        }
        // Sizes behind the contents, and names in UTF-8, are no matter; the rest is encryption and patches.
        if ((flags & ~0x080eU) != 0 || (method != 0 && method != 8)) {
            return name + " is encrypted, or packed by another method than deflate";
        }
        if (version > max_version) return name + " needs a newer zip";
        const bool ascii = std::all_of(name.begin(), name.end(), [](char letter) { return letter > 0; });
        if (!ascii && ((flags & 0x0800U) == 0 || !is_utf8(name))) return "a name is no UTF-8";
        return "";
    }
};

// Where the contents of a member are: behind a header of their own.
std::string_view contents(std::string_view data, std::size_t base, std::size_t directory, const Member& member,
                          const std::string& where) {
    const std::size_t header = base + member.offset;
    const bool there = header <= directory && directory - header >= header_size && starts(data, header, "PK\3\4");
    if (!there) refuse_package(member.name + " is not where the directory says", where);
    const std::size_t name = number(data, header + 26, 2);
    const std::size_t start = header + header_size + name + number(data, header + 28, 2);
    if (start > directory || data.substr(header + header_size, name) != member.name) {
        refuse_package(member.name + " has another name where it is", where);
    }
    if (directory - start < member.size) refuse_package(member.name + " is cut off", where);
    return data.substr(start, member.size);
}

}  // namespace

void refuse_package(const std::string& what, const std::string& where) {
    throw Error(DNC_ERROR_ENGINE, "this is no package of dnc's: " + what, where, damaged);
}

std::map<std::string, std::string_view> read_package(std::string_view data, const std::string& where) {
    const std::size_t end = find_end(data, where);
    const std::size_t size = number(data, end + 12, 4), offset = number(data, end + 16, 4);
    if (size > end || offset > end - size) refuse_package("its directory is not where it says", where);
    // What stands before the archive is skipped, as other tools do it.
    const std::size_t directory = end - size, base = directory - offset;
    std::map<std::string, std::string_view> found;
    for (std::size_t at = directory; at < end;) {
        if (end - at < entry_size || !starts(data, at, "PK\1\2")) refuse_package("its directory is damaged", where);
        const std::size_t name = number(data, at + 28, 2);
        const std::size_t length = entry_size + name + number(data, at + 30, 2) + number(data, at + 32, 2);
        if (end - at < length) refuse_package("its directory is damaged", where);
        const Member member{std::string(data.substr(at + entry_size, name)),
                            number(data, at + 6, 1),
                            number(data, at + 8, 2),
                            number(data, at + 10, 2),
                            number(data, at + 20, 4),
                            number(data, at + 24, 4),
                            number(data, at + 38, 4),
                            number(data, at + 42, 4)};
        at += length;
        if (found.count(member.name) != 0) refuse_package(member.name + " is there twice", where);
        if (const std::string fault = member.fault(); !fault.empty()) refuse_package(fault, where);
        if (member.method != 0) {
            throw Error(DNC_ERROR_ENGINE, member.name + " is deflated, which this library does not unpack", where,
                        "make it again: `dnc package --unpack`, then `dnc package`");
        }
        if (member.packed != member.size) refuse_package(member.name + " has two sizes", where);
        found[member.name] = contents(data, base, directory, member, where);
    }
    return found;
}

}  // namespace dnc_runtime

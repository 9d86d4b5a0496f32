// The files of an engine: read out of one folder, whatever takes its place meanwhile, and known to be those that were
// checked when a library opens them by their names, as dnc/runtime/manifest.py and dnc/files/reading.py do it; or parts
// of a package in memory.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace dnc_runtime {

// Device, number, size and times of a file: the same as long as nobody writes into it or replaces it.
using Stamp = std::array<long long, 7>;

// Throws Error if there is no such file.
Stamp stamp_of(const std::string& path);

// A folder that stays the same one while it is read.
class Folder {
public:
    // Throws std::system_error if it is no folder, or cannot be opened.
    explicit Folder(const std::string& path);
    ~Folder();
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    const std::string& path() const { return path_; }

    // Whether another folder has taken its place.
    bool is_replaced() const;

private:
    friend class File;

    std::string path_;
    int descriptor_ = -1;
};

// A file of a folder, read in pieces. Throws Error, also for what is no file: that might never end, or never begin.
class File {
public:
    File(const Folder& folder, const std::string& name);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    unsigned long long size() const { return size_; }

    // Nothing if it was written so shortly before that it may be written again without another time.
    const std::optional<Stamp>& stamp() const { return stamp_; }

    // Fills the buffer as far as the file goes.
    std::size_t read(char* buffer, std::size_t size);

private:
    [[noreturn]] void fail(const std::string& why) const;

    std::string path_;
    int descriptor_ = -1;
    unsigned long long size_ = 0;
    std::optional<Stamp> stamp_;
};

// What engine.json says of a file.
struct Listed {
    long long size = 0;
    std::string sha256;
};

// The files of an engine, as they were when their digests were checked, and whether they still are. Only where device,
// number, size or times differ are digests computed again. What a library maps into memory and what is written into a
// file in place afterwards, nobody can tell apart: dnc never does so, it replaces folders.
class Files {
public:
    // Checks all of them; throws Error if one is not what is listed.
    Files(const Folder& folder, std::map<std::string, Listed> listed);

    // Those of a package: their contents, which were checked and which nobody changes, and what keeps them in memory,
    // if that is not the caller's affair.
    Files(std::map<std::string, Listed> listed, std::map<std::string, std::string_view> contents,
          std::shared_ptr<const void> owner);

    // Of a package, what is in a file that is listed; null for a folder.
    const std::string_view* contents(const std::string& name) const;

    const std::map<std::string, Listed>& listed() const { return listed_; }

    // What `open` gives, which lets a library open files of the engine by their names. Throws Error if they are not
    // those that were checked, before or afterwards.
    template <typename Open>
    auto opening(Open&& open) -> decltype(open()) {
        check_again();
        auto opened = open();
        check_again();
        return opened;
    }

private:
    void check(const Folder& folder);
    void check_again();

    std::string folder_;
    std::map<std::string, Listed> listed_;
    std::map<std::string, std::string_view> contents_;
    std::shared_ptr<const void> owner_;
    std::mutex mutex_;
    std::map<std::string, std::optional<Stamp>> stamps_;  // none of a package
};

// A path by which a library can open what is in memory, as long as this is there: that of a file which is in memory
// too, or, where the system has none, of a temporary one that nobody else may read.
class Loadable {
public:
    // Throws Error.
    explicit Loadable(std::string_view content);
    ~Loadable();
    Loadable(const Loadable&) = delete;
    Loadable& operator=(const Loadable&) = delete;

    const std::string& path() const { return path_; }

private:
    Loadable() = default;

    std::string path_;
    int descriptor_ = -1;
    bool temporary_ = false;
};

// Whether to look again for a folder that was not there: it is being replaced, or its replacing ended between two
// renames and it stands in its place again.
bool put_back(const std::string& folder);

}  // namespace dnc_runtime

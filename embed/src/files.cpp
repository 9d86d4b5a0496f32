#include "files.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "error.hpp"
#include "sha256.hpp"

namespace dnc_runtime {

namespace {

constexpr const char* damaged = "the engine is damaged: build it again";
// Nanoseconds: a file that was written within that time may be written again without another time. Some file systems
// keep whole seconds, FAT two.
constexpr long long second = 1'000'000'000, fine = 20'000'000, coarse = 2 * second;

#ifdef O_PATH
// Who may only pass through a folder can open files that he knows of.
constexpr int as_folder = O_PATH | O_DIRECTORY | O_CLOEXEC;
#else
constexpr int as_folder = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
#endif

Stamp stamp_of(const struct stat& found) {
#ifdef __APPLE__
    const timespec &written = found.st_mtimespec, &changed = found.st_ctimespec;
#else
    const timespec &written = found.st_mtim, &changed = found.st_ctim;
#endif
    return {static_cast<long long>(found.st_dev),
            static_cast<long long>(found.st_ino),
            static_cast<long long>(found.st_size),
            static_cast<long long>(written.tv_sec),
            static_cast<long long>(written.tv_nsec),
            static_cast<long long>(changed.tv_sec),
            static_cast<long long>(changed.tv_nsec)};
}

bool is_settled(const Stamp& stamp) {
    const auto since = std::chrono::system_clock::now().time_since_epoch();
    const long long now = std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
    const long long written = std::max(stamp[3] * second + stamp[4], stamp[5] * second + stamp[6]);
    return now - written > (written % second != 0 ? fine : coarse);
}

bool same(const struct stat& one, const struct stat& other) {
    return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

}  // namespace

Stamp stamp_of(const std::string& path) {
    struct stat found {};
    if (::stat(path.c_str(), &found) != 0) {
        throw Error(DNC_ERROR_ENGINE, std::string("cannot read it: ") + std::strerror(errno), path, damaged);
    }
    return stamp_of(found);
}

Folder::Folder(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), as_folder)) {
    if (descriptor_ < 0) throw std::system_error(errno, std::generic_category());
}

Folder::~Folder() { ::close(descriptor_); }

bool Folder::is_replaced() const {
    struct stat own {};
    struct stat there {};
    return ::fstat(descriptor_, &own) != 0 || ::stat(path_.c_str(), &there) != 0 || !same(own, there);
}

File::File(const Folder& folder, const std::string& name) : path_(folder.path_ + "/" + name) {
    // A pipe that nobody writes to is not waited for.
    descriptor_ = ::openat(folder.descriptor_, name.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor_ < 0) fail(std::strerror(errno));
    struct stat found {};
    const bool known = ::fstat(descriptor_, &found) == 0;
    if (!known || !S_ISREG(found.st_mode)) {
        const std::string why = known ? "it is a pipe or a device, not a file" : std::strerror(errno);
        ::close(descriptor_);
        fail(why);
    }
    size_ = static_cast<unsigned long long>(found.st_size);
    const Stamp stamp = stamp_of(found);
    if (is_settled(stamp)) stamp_ = stamp;
}

File::~File() { ::close(descriptor_); }

std::size_t File::read(char* buffer, std::size_t size) {
    for (;;) {
        const ssize_t count = ::read(descriptor_, buffer, size);
        if (count >= 0) return static_cast<std::size_t>(count);
        if (errno != EINTR) fail(std::strerror(errno));
    }
}

void File::fail(const std::string& why) const {
    const std::string name = path_.substr(path_.find_last_of('/') + 1);
    throw Error(DNC_ERROR_ENGINE, "cannot read " + name + ": " + why, path_, damaged);
}

Files::Files(const Folder& folder, std::map<std::string, Listed> listed)
    : folder_(folder.path()), listed_(std::move(listed)) {
    check(folder);
}

Files::Files(std::map<std::string, Listed> listed, std::map<std::string, std::string_view> contents,
             std::shared_ptr<const void> owner)
    : listed_(std::move(listed)), contents_(std::move(contents)), owner_(std::move(owner)) {}

const std::string_view* Files::contents(const std::string& name) const {
    const auto found = contents_.find(name);
    return found == contents_.end() ? nullptr : &found->second;
}

void Files::check(const Folder& folder) {
    std::vector<char> buffer(1 << 18);
    std::map<std::string, std::optional<Stamp>> stamps;
    for (const auto& [name, expected] : listed_) {
        const std::string path = folder.path() + "/" + name;
        File file(folder, name);
        if (expected.size < 0 || file.size() != static_cast<unsigned long long>(expected.size)) {
            const std::string what =
                name + " has " + std::to_string(file.size()) + " bytes, not " + std::to_string(expected.size);
            throw Error(DNC_ERROR_ENGINE, what, path, damaged);
        }
        Sha256 digest;
        while (const std::size_t count = file.read(buffer.data(), buffer.size())) digest.update(buffer.data(), count);
        if (digest.finish() != expected.sha256) {
            throw Error(DNC_ERROR_ENGINE, "the contents of " + name + " have changed", path, damaged);
        }
        stamps[name] = file.stamp();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    stamps_ = std::move(stamps);
}

void Files::check_again() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto is_same = [this](const auto& file) {
            struct stat found {};
            const bool there = ::stat((folder_ + "/" + file.first).c_str(), &found) == 0;
            return there && file.second == stamp_of(found);
        };
        if (std::all_of(stamps_.begin(), stamps_.end(), is_same)) return;
    }
    try {
        check(Folder(folder_));
    } catch (const std::runtime_error&) {
        throw Error(DNC_ERROR_ENGINE, "the engine was replaced or changed since it was opened", folder_,
                    "open it again");
    }
}

// When the other constructor is through, the destructor cleans up after this one.
Loadable::Loadable(std::string_view content) : Loadable() {
    const auto refuse = [this] {
        throw Error(DNC_ERROR_TARGET, std::string("cannot make a file for the loader: ") + std::strerror(errno), path_);
    };
#ifdef __linux__
    descriptor_ = ::memfd_create("dnc", MFD_CLOEXEC);
    path_ = "/proc/self/fd/" + std::to_string(descriptor_);
    if (descriptor_ >= 0 && ::access(path_.c_str(), R_OK) != 0) {
        ::close(descriptor_);
        descriptor_ = -1;
    }
#endif
    if (descriptor_ < 0) {
        std::error_code none;
        path_ = (std::filesystem::temp_directory_path(none) / "dnc-XXXXXX").string();
        descriptor_ = ::mkstemp(path_.data());
        if (descriptor_ < 0) refuse();
        temporary_ = true;
    }
    while (!content.empty()) {
        const ssize_t count = ::write(descriptor_, content.data(), content.size());
        if (count < 0 && errno != EINTR) refuse();
        content.remove_prefix(count < 0 ? 0 : static_cast<std::size_t>(count));
    }
}

Loadable::~Loadable() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (temporary_) ::unlink(path_.c_str());
}

bool put_back(const std::string& folder) {
    namespace fs = std::filesystem;
    std::error_code error;
    fs::path place(folder);
    if (fs::is_symlink(place, error)) place = place.parent_path() / fs::read_symlink(place, error);
    if (!place.has_filename()) place = place.parent_path();
    const fs::path parent = place.has_parent_path() ? place.parent_path() : fs::path(".");
    const std::string ours = ".dnc-part";
    for (fs::directory_iterator entry(parent, error), end; !error && entry != end; entry.increment(error)) {
        const std::string name = entry->path().filename().string();
        const fs::path old = entry->path() / "old" / place.filename();
        std::error_code none;
        if (name.size() < ours.size() || name.compare(name.size() - ours.size(), ours.size(), ours) != 0) continue;
        if (!fs::exists(fs::symlink_status(old, none))) continue;
        // Whoever gets the lock without waiting knows that the owner is dead.
        const int lock = ::open((entry->path() / "lock").c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC);
        if (lock >= 0 && ::flock(lock, LOCK_EX | LOCK_NB) == 0 && !fs::exists(fs::symlink_status(place, none))) {
            fs::rename(old, place, none);
        }
        if (lock >= 0) ::close(lock);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return true;
    }
    return fs::exists(place, error);
}

}  // namespace dnc_runtime

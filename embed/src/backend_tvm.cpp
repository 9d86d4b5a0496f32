// Target tvm: model.so, run by TVM's runtime as dnc/runtime/runners/tvm/session.py does. TVM keeps one pool of workers for
// each thread that calls it, so the library never calls it in the application's threads, but in its own: as many as run
// at the same time, each with a virtual machine. They share the code and the weights. The code of an engine for batches
// of any size is for one image: images run at the same time, each on a processor of its own, and what is left when they
// are fewer than the processors one after the other on all of them.

#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "backend.hpp"
#include "error.hpp"
#include "json.hpp"

namespace dnc_runtime {

namespace {

namespace ffi = tvm::ffi;

constexpr const char* again = "build the engine again";
constexpr std::size_t alignment = 64;  // what LLVM was told of every array
constexpr int pooled = 2;              // the allocator that keeps memory for the next run

// The first line of what TVM says; the others are its stack.
std::string reason(const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
}

// What is in a file of the engine.
std::string read(const Bundle& bundle, const std::string& name) {
    const std::string path = bundle.path(name);
    if (const std::string_view* content = bundle.files->contents(name)) return std::string(*content);
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) throw Error(DNC_ERROR_TARGET, "cannot read the file", path, again);
    return text.str();
}

std::vector<std::string> strings(const Json* value) {
    std::vector<std::string> found;
    const Json::Array* items = value == nullptr ? nullptr : value->array();
    if (items == nullptr) return found;
    for (const Json& item : *items) {
        if (const std::string* text = item.string()) found.push_back(*text);
    }
    return found;
}

// An input or output, as model.json has it.
struct Port {
    std::string name;
    bool of_each;  // there is one of each image, and a run takes any number of them
};

std::vector<Port> ports_of(const Json* values) {
    std::vector<Port> found;
    const Json::Array* items = values == nullptr ? nullptr : values->array();
    if (items == nullptr) return found;
    for (const Json& item : *items) {
        const Json *name = item.find("name"), *shape = item.find("shape");
        const Json::Array* sides = shape == nullptr ? nullptr : shape->array();
        const std::string* first = sides == nullptr || sides->empty() ? nullptr : sides->front().string();
        found.push_back({name == nullptr || name->string() == nullptr ? "" : *name->string(),
                         first != nullptr && *first == "N"});
    }
    return found;
}

// What the first processor has, by Linux; nothing where that cannot be known.
std::set<std::string> processor_flags() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
        std::istringstream words(line.substr(line.find(':') + 1));
        std::set<std::string> flags;
        for (std::string word; words >> word;) flags.insert(word);
        return flags;
    }
    return {};
}

const char* machine() {
#if defined(__x86_64__)
    return "x86_64";
#elif defined(__aarch64__)
    return "aarch64";
#else
    return "another architecture";
#endif
}

// What model.json says of the machine that model.so is for, and of its inputs and outputs.
struct About {
    std::string mcpu;
    std::vector<Port> inputs;
    std::vector<Port> outputs;
    std::vector<bool> shared;  // which outputs are memory of the graph's own

    explicit About(const Bundle& bundle) {
        const std::string path = bundle.path("model.json");
        const Json json = Json::parse(read(bundle, "model.json"));
        const auto text = [&](const char* name) {
            const Json* value = json.find(name);
            const std::string* found = value == nullptr ? nullptr : value->string();
            if (found == nullptr) throw Error(DNC_ERROR_TARGET, std::string("it lacks ") + name, path, again);
            return *found;
        };
        mcpu = text("mcpu");
        const std::string wanted = text("architecture");
        if (wanted != machine()) {
            throw Error(DNC_ERROR_TARGET, "the engine is for " + wanted + ", this machine is " + machine(),
                        bundle.folder, "run it there, or compile it for this machine: --target tvm");
        }
        const std::set<std::string> own = processor_flags();
        std::string missing;
        for (const std::string& flag : strings(json.find("cpuinfo"))) {
            if (!own.empty() && own.count(flag) == 0) missing += (missing.empty() ? "" : ", ") + flag;
        }
        if (!missing.empty()) {
            const std::string any = wanted == "x86_64" ? "x86-64-v2" : "generic";
            throw Error(DNC_ERROR_TARGET, "the engine is for " + mcpu + ": this processor lacks " + missing,
                        bundle.folder, "build the engine again with --option mcpu=host, here, or mcpu=" + any + " for any");
        }
        inputs = ports_of(json.find("inputs"));
        outputs = ports_of(json.find("outputs"));
        const std::vector<std::string> taken = strings(json.find("shared"));
        for (const Port& port : outputs) {
            shared.push_back(std::find(taken.begin(), taken.end(), port.name) != taken.end());
        }
        if (shared.size() != bundle.outputs.size() + bundle.states.size()) {
            throw Error(DNC_ERROR_TARGET, "the model's outputs are not those in engine.json", path, again);
        }
    }
};

// A spelling of a library's path that no other file has had in this process. The system's loader goes by names: while a
// library is loaded, it takes what has the same name for that library, even where another file has taken its place.
std::string own_name(const std::string& library) {
    static std::mutex mutex;
    static std::map<std::string, std::vector<Stamp>> seen;
    const std::lock_guard<std::mutex> lock(mutex);
    std::vector<Stamp>& files = seen[library];
    const Stamp stamp = stamp_of(library);
    const auto found = std::find(files.begin(), files.end(), stamp);
    const auto number = static_cast<std::size_t>(found - files.begin());
    if (found == files.end()) files.push_back(stamp);
    // Nothing, as a part of a path, in a way of its own for each number.
    std::string nothing;
    for (std::size_t rest = number; rest != 0; rest /= 2) nothing.insert(0, rest % 2 != 0 ? "./" : "/");
    const std::size_t name = library.find_last_of('/') + 1;
    return library.substr(0, name) + nothing + library.substr(name);
}

// A path by which the loader finds a library of the engine, as long as this is there.
class Library {
public:
    Library(const Bundle& bundle, const std::string& name) : path_(bundle.path(name)) {
        if (const std::string_view* content = bundle.files->contents(name)) {
            own_ = std::make_unique<Loadable>(*content);
            path_ = own_->path();
        }
    }

    const std::string& path() const { return path_; }

private:
    std::string path_;
    std::unique_ptr<Loadable> own_;
};

// TVM's runtime in this process, which can have one: that which is there already, else the engine's.
void load_runtime(const Bundle& bundle) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    // By default it binds the caller's thread to processors for good, and idle workers wait busily for milliseconds.
    setenv("TVM_BIND_THREADS", "0", 0);
    setenv("TVM_NUM_THREADS", std::to_string(std::max(1U, std::thread::hardware_concurrency())).c_str(), 0);
    setenv("TVM_THREAD_POOL_SPIN_COUNT", "3000", 0);
    if (ffi::Function::GetGlobal("runtime.config_threadpool").has_value()) return;
    const std::string name = "libtvm_runtime.so";
    std::optional<Library> own;
    if (bundle.files->listed().count(name) != 0) own.emplace(bundle, name);
    const std::string path = own ? own_name(own->path()) : name;
    if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
        const char* said = dlerror();
        throw Error(DNC_ERROR_TARGET, std::string("TVM's runtime cannot be loaded: ") + (said == nullptr ? "" : said),
                    bundle.folder, "build the engine with --option runtime=bundled");
    }
}

// Memory that belongs to somebody else.
struct Borrowed {
    void* data;
    void AllocData(DLTensor* tensor) const { tensor->data = data; }
    void FreeData(DLTensor*) const {}
};

struct Allocated {
    void AllocData(DLTensor* tensor) const {
        const std::size_t size = (ffi::GetDataSize(*tensor) + alignment - 1) / alignment * alignment;
        tensor->data = std::aligned_alloc(alignment, std::max(size, alignment));
        if (tensor->data == nullptr) throw std::bad_alloc();
    }
    void FreeData(DLTensor* tensor) const { std::free(tensor->data); }
};

ffi::Tensor tensor_of(const Tensor& input) {
    const DLDevice cpu{kDLCPU, 0};
    const DLDataType real{kDLFloat, 32, 1}, byte{kDLUInt, 8, 1};
    const DLDataType type = input.type == DNC_UINT8 ? byte : real;
    const std::vector<std::int64_t> sides(input.shape.begin(), input.shape.end());
    const ffi::ShapeView shape(sides.data(), sides.size());
    // TVM does not write into inputs, but has no type for what is only read.
    void* const data = const_cast<void*>(input.data);
    if (reinterpret_cast<std::uintptr_t>(data) % alignment == 0) {
        return ffi::Tensor::FromNDAlloc(Borrowed{data}, shape, type, cpu);
    }
    ffi::Tensor copy = ffi::Tensor::FromNDAlloc(Allocated(), shape, type, cpu);
    std::memcpy(copy.data_ptr(), data, input.bytes());
    return copy;
}

using Given = ffi::Array<ffi::Tensor>;

// A thread with a virtual machine and a pool of TVM's.
class Worker {
public:
    Worker(const std::string& path, int threads) : thread_([this] { serve(); }) {
        try {
            start([this, &path, threads] { open(path, threads); }).get();
        } catch (...) {
            stop();
            throw;
        }
    }

    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    ~Worker() { stop(); }

    // How many threads its pool has.
    std::size_t threads() const { return wide_; }

    // Begins some work, in this thread. There is no other till it is done.
    std::future<void> start(const std::function<void()>& work) {
        std::packaged_task<void()> task(work);
        std::future<void> done = task.get_future();
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            task_ = std::move(task);
        }
        changed_.notify_one();
        return done;
    }

    // What the network gives, for work of this thread.
    Given run(const std::vector<ffi::Tensor>& inputs) {
        std::vector<ffi::AnyView> arguments(inputs.begin(), inputs.end());
        ffi::Any result;
        main_->CallPacked(arguments.data(), static_cast<std::int32_t>(arguments.size()), &result);
        return result.cast<Given>();
    }

private:
    void open(const std::string& path, int threads) {
        const ffi::Function configure = *ffi::Function::GetGlobal("runtime.config_threadpool");
        if (threads == 1) {
            // A list of one processor, which nothing is bound to, keeps TVM from starting threads for others.
            configure(1, 1, ffi::Array<ffi::String>{"0"});
        } else if (threads > 1) {
            configure(1, threads);
        }
        const auto wide = (*ffi::Function::GetGlobal("runtime.NumThreads"))().cast<std::int64_t>();
        wide_ = static_cast<std::size_t>(std::max<std::int64_t>(wide, 1));
        // Not by Module::LoadFromFile, which wants a suffix.
        const ffi::Function load = *ffi::Function::GetGlobal("ffi.Module.load_from_file.so");
        const auto library = load(path, "so").cast<ffi::Module>();
        machine_ = (*library->GetFunction("vm_load_executable"))().cast<ffi::Module>();
        (*(*machine_)->GetFunction("vm_initialization"))(static_cast<int>(kDLCPU), 0, pooled);
        main_ = (*machine_)->GetFunction("main").value();
    }

    void serve() {
        for (;;) {
            std::packaged_task<void()> task;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                changed_.wait(lock, [this] { return stopped_ || task_.has_value(); });
                if (!task_.has_value()) break;
                task = std::move(*task_);
                task_.reset();
            }
            task();
        }
        // What TVM made in this thread ends in it.
        main_.reset();
        machine_.reset();
    }

    void stop() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopped_ = true;
        }
        changed_.notify_one();
        if (thread_.joinable()) thread_.join();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::optional<std::packaged_task<void()>> task_;
    bool stopped_ = false;
    std::size_t wide_ = 1;
    std::optional<ffi::Module> machine_;
    std::optional<ffi::Function> main_;
    std::thread thread_;  // the last member: it uses the others
};

// Memory of TVM's, which belongs to nobody else, but for outputs that the graph takes over from elsewhere.
class TvmOutputs : public Outputs {
public:
    TvmOutputs(const Given& given, const std::vector<bool>& shared) {
        if (given.size() != shared.size()) {
            throw Error(DNC_ERROR_TARGET, "the model's outputs are not those in engine.json", "", again);
        }
        for (std::size_t place = 0; place < shared.size(); ++place) {
            ffi::Tensor tensor = given[static_cast<std::int64_t>(place)];
            const DLDataType type = tensor.dtype();
            if (type.code != kDLFloat || type.bits != 32) {
                throw Error(DNC_ERROR_TARGET, "output " + std::to_string(place) + " of the model is no float32", "",
                            again);
            }
            Shape shape;
            for (const std::int64_t side : tensor.shape()) shape.push_back(static_cast<std::size_t>(side));
            Tensor found{"", DNC_FLOAT32, shape, tensor.data_ptr()};
            if (shared[place]) {
                const auto* first = static_cast<const float*>(found.data);
                copies_.emplace_back(first, first + found.bytes() / sizeof(float));
                found.data = copies_.back().data();
            } else {
                held_.push_back(std::move(tensor));
            }
            tensors_.push_back(std::move(found));
        }
    }

    const std::vector<Tensor>& tensors() const override { return tensors_; }

private:
    std::vector<ffi::Tensor> held_;
    std::vector<std::vector<float>> copies_;
    std::vector<Tensor> tensors_;
};

// What the images of a batch gave, each output as one array. Detections, which are not of each image, are one list of rows,
// best first, that begin with the image's number and have the score in their third column.
class BatchOutputs : public Outputs {
public:
    BatchOutputs(const std::vector<TvmOutputs>& images, const std::vector<Port>& ports) {
        for (std::size_t place = 0; place < ports.size(); ++place) {
            Shape shape = images[0].tensors()[place].shape;
            const bool of_each = ports[place].of_each;
            std::vector<float> joined;
            for (std::size_t image = 0; image < images.size(); ++image) {
                const Tensor& part = images[image].tensors()[place];
                const bool same = of_each ? part.shape == shape && !shape.empty() && shape[0] == 1
                                          : part.shape.size() == 2 && part.shape[1] > 2 && part.shape[1] == shape[1];
                if (!same) {
                    throw Error(DNC_ERROR_TARGET, "output " + ports[place].name + " of the model has another shape", "",
                                again);
                }
                const auto* first = static_cast<const float*>(part.data);
                const std::size_t before = joined.size();
                joined.insert(joined.end(), first, first + part.bytes() / sizeof(float));
                for (std::size_t row = before; !of_each && row < joined.size(); row += shape[1]) {
                    joined[row] = static_cast<float>(image);
                }
            }
            if (!of_each) joined = sorted(joined, shape[1]);
            shape[0] = of_each ? images.size() : joined.size() / shape[1];
            values_.push_back(std::move(joined));
            tensors_.push_back({"", DNC_FLOAT32, shape, values_.back().data()});
        }
    }

    const std::vector<Tensor>& tensors() const override { return tensors_; }

private:
    // Rows by descending score; equals stay in their order.
    static std::vector<float> sorted(const std::vector<float>& rows, std::size_t width) {
        std::vector<std::size_t> starts;
        for (std::size_t start = 0; start < rows.size(); start += width) starts.push_back(start);
        std::stable_sort(starts.begin(), starts.end(),
                         [&](std::size_t one, std::size_t other) { return rows[one + 2] > rows[other + 2]; });
        std::vector<float> found;
        found.reserve(rows.size());
        for (const std::size_t start : starts) found.insert(found.end(), &rows[start], &rows[start] + width);
        return found;
    }

    std::vector<std::vector<float>> values_;
    std::vector<Tensor> tensors_;
};

class TvmBackend : public Backend {
public:
    TvmBackend(const Bundle& bundle, const OpenOptions& given)
        : files_(bundle.files), path_(bundle.path("model.so")), threads_(given.threads), about_(bundle),
          library_(bundle, "model.so") {
        if (!given.options.empty()) {
            const std::string option = given.options.begin()->first + "=" + given.options.begin()->second;
            throw Error(DNC_ERROR_ARGUMENT, "target tvm takes no options when an engine is opened", bundle.folder,
                        "`dnc compile --option " + option + "`");
        }
        load_runtime(bundle);
        try {
            // The first one shows whether the engine loads at all.
            auto first = std::make_unique<Worker>(own_name(library_.path()), threads_);
            processors_ = first->threads();
            give(std::move(first), threads_);
        } catch (const std::exception& error) {
            throw Error(DNC_ERROR_TARGET, "TVM refuses the engine: " + reason(error), path_, again);
        }
    }

    std::string device() const override { return "CPU (" + about_.mcpu + ", TVM)"; }

    std::unique_ptr<Outputs> run(const std::vector<Tensor>& inputs) override {
        try {
            std::vector<Tensor> ordered;
            std::size_t count = 1;
            for (const Port& port : about_.inputs) {
                const auto same = [&port](const Tensor& input) { return input.name == port.name; };
                const auto found = std::find_if(inputs.begin(), inputs.end(), same);
                if (found == inputs.end()) {
                    throw Error(DNC_ERROR_TARGET, "the model has an input " + port.name + ", engine.json has none",
                                path_, again);
                }
                if (port.of_each && !found->shape.empty()) count = found->shape[0];
                ordered.push_back(*found);
            }
            std::vector<Given> given(count);
            const std::size_t together = processors_ > 1 && count > 1 ? count % processors_ : count;
            spread(std::vector<int>(processors_, 1), ordered, 0, count - together, given);
            spread({threads_}, ordered, count - together, count, given);
            if (count == 1) return std::make_unique<TvmOutputs>(given[0], about_.shared);
            // They are copied anyway.
            const std::vector<bool> taken(about_.shared.size(), false);
            std::vector<TvmOutputs> images;
            for (const Given& one : given) images.emplace_back(one, taken);
            return std::make_unique<BatchOutputs>(images, about_.outputs);
        } catch (const Error&) {
            throw;
        } catch (const std::exception& error) {
            throw Error(DNC_ERROR_TARGET, "TVM failed: " + reason(error), path_);
        }
    }

private:
    // Runs images of a batch, each on whichever is free of workers of so many threads.
    void spread(const std::vector<int>& threads, const std::vector<Tensor>& inputs, std::size_t begin, std::size_t end,
                std::vector<Given>& given) {
        if (begin == end) return;
        std::atomic<std::size_t> next{begin};
        std::vector<std::unique_ptr<Worker>> workers;
        for (const int number : threads) workers.push_back(take(number));
        std::vector<std::future<void>> running;
        for (const std::unique_ptr<Worker>& worker : workers) {
            running.push_back(worker->start([&, own = worker.get()] {
                for (std::size_t place = next++; place < end; place = next++) {
                    given[place] = own->run(image(inputs, place));
                }
            }));
        }
        // Whatever fails, nobody reads the inputs any more afterwards.
        for (const std::future<void>& work : running) work.wait();
        for (std::future<void>& work : running) work.get();
        // Those of a run that failed are not used again.
        for (std::size_t place = 0; place < workers.size(); ++place) give(std::move(workers[place]), threads[place]);
    }

    // The inputs for one image of a batch.
    std::vector<ffi::Tensor> image(const std::vector<Tensor>& inputs, std::size_t place) const {
        std::vector<ffi::Tensor> found;
        for (std::size_t index = 0; index < inputs.size(); ++index) {
            Tensor part = inputs[index];
            if (about_.inputs[index].of_each) {
                part.shape[0] = 1;
                part.data = static_cast<const unsigned char*>(part.data) + place * part.bytes();
            }
            found.push_back(tensor_of(part));
        }
        return found;
    }

    std::unique_ptr<Worker> take(int threads) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            std::vector<std::unique_ptr<Worker>>& workers = free_[threads];
            if (!workers.empty()) {
                std::unique_ptr<Worker> worker = std::move(workers.back());
                workers.pop_back();
                return worker;
            }
        }
        return files_->opening([this, threads] { return std::make_unique<Worker>(own_name(library_.path()), threads); });
    }

    void give(std::unique_ptr<Worker> worker, int threads) {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_[threads].push_back(std::move(worker));
    }

    std::shared_ptr<Files> files_;
    std::string path_;
    int threads_;
    About about_;
    Library library_;
    std::size_t processors_ = 1;  // threads of a run
    std::mutex mutex_;
    std::map<int, std::vector<std::unique_ptr<Worker>>> free_;  // by their threads
};

}  // namespace

std::unique_ptr<Backend> open_tvm(const Bundle& bundle, const OpenOptions& options) {
    return std::make_unique<TvmBackend>(bundle, options);
}

}  // namespace dnc_runtime

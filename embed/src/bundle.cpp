#include "bundle.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <system_error>

#include "error.hpp"
#include "json.hpp"
#include "package.hpp"
#include "sha256.hpp"

namespace dnc_runtime {

namespace {

constexpr long long schema = 2;
constexpr const char* damaged = "the engine is damaged: build it again";
constexpr const char* unknown = "a newer dnc made it: update dnc, or build the engine again";
constexpr std::size_t max_text = std::size_t{1} << 24;      // bytes of engine.json, and of labels.txt
constexpr std::size_t max_elements = std::size_t{1} << 30;  // of an input
constexpr std::size_t max_files = 1000;                     // of an engine, as in manifest.py
constexpr long long max_classes = 1 << 20;
constexpr long long max_anchors = 1 << 10;
constexpr long long max_grid = 1 << 12;
constexpr long long max_int = 2147483647;
constexpr int max_tries = 100;
constexpr std::align_val_t alignment{64};  // of members of a package, from its first byte on

std::string read_text(const Folder& folder, const std::string& name) {
    File file(folder, name);
    std::string text;
    std::array<char, 1 << 16> buffer;
    while (const std::size_t count = file.read(buffer.data(), buffer.size())) {
        text.append(buffer.data(), count);
        if (text.size() > max_text) {
            throw Error(DNC_ERROR_ENGINE, "the file is too large", folder.path() + "/" + name, damaged);
        }
    }
    return text;
}

std::string digest_of(std::string_view text) {
    Sha256 digest;
    digest.update(text.data(), text.size());
    return digest.finish();
}

// What is wrong with engine.json; read_bundle says where.
[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

long long whole(const Json& json, const std::string& what, long long low, long long high) {
    const std::optional<long long> value = json.integer();
    if (!value || *value < low || *value > high) {
        refuse(what + " is no whole number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return *value;
}

std::size_t count(const Json& json, const std::string& what, long long high = max_int, long long low = 1) {
    return static_cast<std::size_t>(whole(json, what, low, high));
}

double number(const Json& json, const std::string& what) {
    const std::optional<double> value = json.number();
    if (!value || std::abs(*value) > static_cast<double>(max_int)) refuse(what + " is no number");
    return *value;
}

const std::string& text(const Json& json, const std::string& what) {
    const std::string* value = json.string();
    if (value == nullptr) refuse(what + " is no text");
    return *value;
}

bool truth(const Json& json, const std::string& what) {
    const bool* value = json.boolean();
    if (value == nullptr) refuse(what + " is neither true nor false");
    return *value;
}

const Json::Array& items(const Json& json, const std::string& what) {
    const Json::Array* value = json.array();
    if (value == nullptr) refuse(what + " is no list");
    return *value;
}

const Json::Object& members(const Json& json, const std::string& what) {
    const Json::Object* value = json.object();
    if (value == nullptr) refuse(what + " is no object");
    return *value;
}

Shape shape(const Json& json, const std::string& what, long long low = 1) {
    Shape sides;
    for (const Json& side : items(json, what)) sides.push_back(count(side, "a side of " + what, max_int, low));
    return sides;
}

// How many numbers an input of this shape has.
std::size_t elements(const Shape& sides, const std::string& what) {
    std::size_t product = 1;
    for (const std::size_t side : sides) {
        if (side > max_elements / product) refuse(what + " is too large");
        product *= side;
    }
    return product;
}

// The fields of an object: each is to be asked for, and what nobody asked for is refused.
class Fields {
public:
    Fields(const Json& json, std::string what) : json_(json), what_(std::move(what)) { members(json, what_); }

    const Json& need(const std::string& name) {
        const Json* found = maybe(name);
        if (found == nullptr) refuse(what_ + " lacks " + name);
        return *found;
    }

    const Json* maybe(const std::string& name) {
        asked_.insert(name);
        return json_.find(name);
    }

    void end() const {
        for (const Json::Member& member : *json_.object()) {
            if (asked_.count(member.name) == 0) refuse(what_ + " has a field '" + member.name + "'; " + unknown);
        }
    }

private:
    const Json& json_;
    std::string what_;
    std::set<std::string> asked_;
};

// Which of some words a text is.
std::size_t word(const Json& json, const std::string& what, std::initializer_list<const char*> known) {
    const std::string& given = text(json, what);
    const auto found = std::find(known.begin(), known.end(), given);
    if (found == known.end()) refuse("unknown " + what + " '" + given + "'; " + unknown);
    return static_cast<std::size_t>(found - known.begin());
}

std::vector<float> per_channel(const Json& json, const std::string& what, std::size_t channels, bool positive) {
    std::vector<float> values;
    for (const Json& item : items(json, what)) {
        const double value = number(item, what);
        if (positive && !(value > 0)) refuse(what + " is not positive");
        values.push_back(static_cast<float>(value));
    }
    if (values.size() != 1 && values.size() != channels) {
        refuse(what + " has neither 1 number nor one for each channel");
    }
    return values;
}

Preprocessing preprocessing(const Json& json) {
    Fields fields(json, "preprocessing");
    Preprocessing p;
    p.width = count(fields.need("width"), "width", max_side);
    p.height = count(fields.need("height"), "height", max_side);
    const Json* channels = fields.maybe("channels");
    if (channels != nullptr) p.channels = count(*channels, "channels", max_channels);
    const Json* mode = fields.maybe("mode");
    if (mode != nullptr) {
        p.mode = static_cast<Preprocessing::Mode>(
            word(*mode, "mode", {"resize", "resize-half-pixel", "letterbox", "center-crop"}));
    }
    const Json* color = fields.maybe("color");
    const std::size_t kind = color == nullptr ? 0 : word(*color, "color", {"rgb", "bgr", "gray"});
    if ((kind == 2) != (p.channels == 1) || (kind == 1 && p.channels < 3)) {
        refuse("the color does not fit the channels");
    }
    p.bgr = kind == 1;
    if (const Json* scale = fields.maybe("scale")) p.scale = number(*scale, "scale");
    if (!(p.scale > 0)) refuse("scale is not positive");
    p.mean = per_channel(fields.need("mean"), "mean", p.channels, false);
    p.std = per_channel(fields.need("std"), "std", p.channels, true);
    if (const Json* crop = fields.maybe("crop")) p.crop = number(*crop, "crop");
    const Json* interpolation = fields.maybe("interpolation");
    p.bicubic = interpolation != nullptr && word(*interpolation, "interpolation", {"bilinear", "bicubic"}) == 1;
    const bool cropped = p.crop < 1;
    if (!(p.crop >= 0.1 && p.crop <= 1)) refuse("a crop is from 0.1 to 1");
    if ((cropped || p.bicubic) && p.mode != Preprocessing::Mode::center_crop) {
        refuse("crop and bicubic are for center-crop");
    }
    fields.end();
    return p;
}

void yolo_fields(Fields& fields, Head& head) {
    const Json::Array& input = items(fields.need("input_size"), "input_size");
    if (input.size() != 2) refuse("input_size is no pair");
    for (std::size_t axis = 0; axis < 2; ++axis) {
        head.input_size[axis] = static_cast<double>(count(input[axis], "input_size"));
    }
    // Applied in the map already.
    if (const Json* scale = fields.maybe("scale_x_y")) number(*scale, "scale_x_y");
    if (const Json* coords = fields.maybe("new_coords")) head.new_coords = truth(*coords, "new_coords");
    if (const Json* kind = fields.maybe("nms_kind")) {
        const std::size_t found = word(*kind, "nms_kind", {"default", "greedynms", "diounms", "cornersnms"});
        head.nms = found == 1 ? NmsKind::greedynms : found == 2 ? NmsKind::diounms : NmsKind::plain;
    }
    if (const Json* beta = fields.maybe("beta_nms")) head.beta = static_cast<float>(number(*beta, "beta_nms"));
    const Json* point = head.kind == HeadKind::gaussian_yolo ? fields.maybe("yolo_point") : nullptr;
    if (point != nullptr) {
        head.point = static_cast<Point>(word(*point, "yolo_point", {"center", "left_top", "right_bottom"}));
    }
}

void read_tree(Fields& fields, Head& head) {
    const Json* tree = fields.maybe("tree");
    if (tree == nullptr) return;
    for (const Json& parent : items(*tree, "tree")) {
        // Of roots, any negative number.
        const auto before = static_cast<long long>(head.tree.size()) - 1;
        head.tree.push_back(static_cast<std::ptrdiff_t>(whole(parent, "the parent of a node", -max_int, before)));
    }
    if (!head.tree.empty() && head.tree.size() != head.classes) {
        refuse("the class tree has not as many nodes as there are classes");
    }
}

Head head_of(const Json& json) {
    Fields fields(json, "a head");
    Head head;
    head.kind = static_cast<HeadKind>(
        word(fields.need("kind"), "kind of head", {"yolo", "gaussian_yolo", "region", "detection", "classifier"}));
    head.kind_name = text(fields.need("kind"), "kind of head");
    head.output = text(fields.need("output"), "a head's output");
    head.where = text(fields.need("where"), "a head's place");
    head.classes = count(fields.need("classes"), "classes", max_classes);
    const bool region = head.kind == HeadKind::region, yolo = head.kind <= HeadKind::gaussian_yolo;
    if (yolo || region) {
        for (const Json& pair : items(fields.need("anchors"), "anchors")) {
            const Json::Array& sides = items(pair, "an anchor");
            if (sides.size() != 2) refuse("an anchor is no pair");
            head.anchors.push_back(
                {static_cast<float>(number(sides[0], "an anchor")), static_cast<float>(number(sides[1], "an anchor"))});
        }
        if (head.anchors.empty() || head.anchors.size() > max_anchors) refuse("a head has no anchors, or too many");
    }
    if (yolo) yolo_fields(fields, head);
    if (region || head.kind == HeadKind::classifier) read_tree(fields, head);
    if (region) {
        if (const Json* sure = fields.maybe("tree_threshold")) {
            head.tree_threshold = static_cast<float>(number(*sure, "tree_threshold"));
        }
        if (const Json* map = fields.maybe("map")) {
            const auto nodes = static_cast<long long>(head.classes);
            for (const Json& node : items(*map, "map")) head.map.push_back(count(node, "a node of map", nodes - 1, 0));
        }
        // Without a tree it is not looked at.
        if (head.tree.empty()) head.map.clear();
        if (const Json* fix = fields.maybe("classfix")) {
            head.classfix = static_cast<int>(whole(*fix, "classfix", -max_int, max_int));
        }
        // For other programs, see RegionHead: not used here, but refused where Python refuses it.
        if (const Json* low = fields.maybe("thresh"); low != nullptr && !low->is_null()) number(*low, "thresh");
    }
    if (head.kind == HeadKind::detection) {
        head.side = count(fields.need("side"), "side", max_grid);
        head.num = count(fields.need("num"), "num", max_anchors);
        if (const Json* root = fields.maybe("sqrt")) head.sqrt = truth(*root, "sqrt");
    }
    fields.end();
    return head;
}

// The lines of labels.txt as Python reads them.
std::vector<std::string> lines(const std::string& content) {
    std::vector<std::string> found(1);
    for (std::size_t place = 0; place < content.size(); ++place) {
        const bool carriage = content[place] == '\r';
        if (carriage && content.substr(place + 1, 1) == "\n") ++place;
        if (carriage || content[place] == '\n') {
            found.emplace_back();
        } else {
            found.back() += content[place];
        }
    }
    if (found.size() > 1 && found.back().empty()) found.pop_back();
    return found;
}

// What only a changed engine.json with a right digest could hold; after this, no index leaves its array.
void check(const Bundle& bundle) {
    const std::size_t inputs = elements(bundle.input_shape, "the input");
    if (bundle.input_shape.size() != 1 && bundle.input_shape.size() != 3) refuse("no input has such a shape");
    if (bundle.batch > max_elements / inputs) refuse("the batch is too large");
    if (bundle.outputs.empty() || bundle.outputs.size() != bundle.output_shapes.size()) {
        refuse("outputs and their shapes do not fit");
    }
    for (const auto& [name, sides] : bundle.states) {
        elements(sides, "state " + name);
        if (sides.size() != 1 && sides.size() != 3) refuse("no state has such a shape");
    }
    const std::optional<Preprocessing>& p = bundle.preprocessing;
    if (p && Shape{p->channels, p->height, p->width} != bundle.input_shape) {
        refuse("the preprocessing does not fit the input");
    }
    if (bundle.takes_pixels && !p) refuse("an input of pixels lacks its preprocessing");
    const std::vector<const Head*> boxes = bundle.box_heads();
    if (bundle.decode != Bundle::Decode::host) {
        const std::size_t wanted = bundle.decode == Bundle::Decode::graph ? 2 : 1;
        if (boxes.empty() || bundle.outputs.size() < wanted) refuse("the graph decodes no boxes");
        return;
    }
    for (const Head& head : bundle.heads) {
        if (std::count(bundle.outputs.begin(), bundle.outputs.end(), head.output) == 0) {
            refuse("a head reads what is no output");
        }
    }
    for (const Head* head : boxes) {
        if (head->classes != boxes.back()->classes || head->columns() != boxes.back()->columns()) {
            refuse("the heads differ in their classes");
        }
    }
}

Bundle parse(const Json& json) {
    Bundle bundle;
    Fields fields(json, "engine.json");
    for (const char* known : {"schema", "files", "sha256"}) fields.need(known);
    bundle.name = text(fields.need("name"), "name");
    bundle.target = text(fields.need("target"), "target");
    members(fields.need("network"), "network");
    bundle.input_shape = shape(fields.need("input_shape"), "input_shape");
    const Json& batch = fields.need("batch");
    if (batch.string() == nullptr) bundle.batch = count(batch, "batch");
    for (const Json& name : items(fields.need("outputs"), "outputs")) bundle.outputs.push_back(text(name, "an output"));
    for (const Json& each : items(fields.need("output_shapes"), "output_shapes")) {
        bundle.output_shapes.push_back(shape(each, "output_shapes", 0));
    }
    const Json& prepared = fields.need("preprocessing");
    if (!prepared.is_null()) bundle.preprocessing = preprocessing(prepared);
    bundle.takes_pixels = word(fields.need("input_dtype"), "input_dtype", {"float32", "uint8"}) == 1;
    bundle.decode = static_cast<Bundle::Decode>(word(fields.need("decode"), "decode", {"host", "graph", "graph+nms"}));
    for (const Json& each : items(fields.need("heads"), "heads")) bundle.heads.push_back(head_of(each));
    std::vector<std::string> extra;
    for (const Json& each : items(fields.need("extra_inputs"), "extra_inputs")) {
        extra.push_back(text(each, "an extra input"));
    }
    bundle.window = extra.size() == 3;
    const std::vector<std::string> thresholds{"confidence", "iou", "window"};
    const bool suppresses = bundle.decode == Bundle::Decode::graph_nms;
    if (extra.size() == 1 || extra.size() > 3 || extra.empty() == suppresses ||
        !std::equal(extra.begin(), extra.end(), thresholds.begin())) {
        refuse("the extra inputs do not fit decode");
    }
    for (const Json::Member& state : members(fields.need("states"), "states")) {
        bundle.states.emplace_back(state.name, shape(state.value, "state " + state.name));
        // Darknet shifts the frames of [history] in training alone: at inference each image is the first one for it.
        const std::string frames = ".frames";
        const std::size_t length = state.name.size();
        const bool shifted = length >= frames.size() && state.name.compare(length - frames.size(), length, frames) == 0;
        if (!shifted) bundle.carried.push_back(state.name);
    }
    for (const Json& pass : items(fields.need("passes"), "passes")) members(pass, "a pass");
    const auto texts = [](const Json* object, const std::string& what) {
        std::map<std::string, std::string> found;
        if (object == nullptr) return found;
        for (const Json::Member& member : members(*object, what)) found[member.name] = text(member.value, what);
        return found;
    };
    texts(&fields.need("tools"), "tools");
    if (const Json* tuning = fields.maybe("tuning")) members(*tuning, "tuning");
    bundle.options = texts(fields.maybe("options"), "options");
    texts(fields.maybe("report"), "report");
    const Json* runner = fields.maybe("runner");
    bundle.runner = runner == nullptr ? "" : text(*runner, "runner");
    if (bundle.runner.empty()) bundle.runner = bundle.target;
    if (const Json* arithmetic = fields.maybe("arithmetic")) bundle.arithmetic = text(*arithmetic, "arithmetic");
    if (const Json* deviation = fields.maybe("deviation")) members(*deviation, "deviation");
    if (const Json* remarks = fields.maybe("remarks")) {
        for (const Json& pass : items(*remarks, "remarks")) members(pass, "a pass's remarks");
    }
    fields.end();
    check(bundle);
    return bundle;
}

// The files that engine.json lists.
std::map<std::string, Listed> list_files(const Json& json, const std::string& manifest) {
    const Json* listed = json.find("files");
    if (listed == nullptr || listed->object() == nullptr) {
        throw Error(DNC_ERROR_ENGINE, "engine.json lists no files", manifest, damaged);
    }
    if (listed->object()->size() > max_files) {
        const std::string what = "engine.json lists more than " + std::to_string(max_files) + " files";
        throw Error(DNC_ERROR_ENGINE, what, manifest, damaged);
    }
    std::map<std::string, Listed> found;
    for (const Json::Member& file : *listed->object()) {
        const std::string& name = file.name;
        // A colon is a drive or a stream on some systems.
        const bool special = name.empty() || name == "." || name == ".." || name == "engine.json";
        if (special || name.find_first_of(std::string("/\\:\0", 4)) != std::string::npos) {
            throw Error(DNC_ERROR_ENGINE, "engine.json names a file outside the folder: " + name, manifest, damaged);
        }
        const Json* size = file.value.find("size");
        const Json* digest = file.value.find("sha256");
        if (size == nullptr || !size->integer() || digest == nullptr || digest->string() == nullptr) {
            throw Error(DNC_ERROR_ENGINE, "engine.json does not say what " + name + " is", manifest, damaged);
        }
        found[name] = {*size->integer(), *digest->string()};
    }
    return found;
}

// engine.json, when it is known to be what a dnc wrote that is not newer. `manifest` is its place.
Json read_manifest(const std::string& content, const std::string& manifest) {
    Json json;
    try {
        json = Json::parse(content);
    } catch (const Error& error) {
        throw Error(DNC_ERROR_ENGINE, std::string("cannot read engine.json: ") + error.what(), manifest, damaged);
    }
    const Json* number = json.find("schema");
    const std::optional<long long> found = number == nullptr ? std::nullopt : number->integer();
    if (!found || *found < 1) throw Error(DNC_ERROR_ENGINE, "engine.json has no schema number", manifest, damaged);
    if (*found > schema) {
        const std::string newer =
            "the engine has schema " + std::to_string(*found) + ", this dnc reads up to " + std::to_string(schema);
        throw Error(DNC_ERROR_ENGINE, newer, manifest, unknown);
    }
    const Json* expected = json.find("sha256");
    if (expected == nullptr || expected->string() == nullptr ||
        *expected->string() != digest_of(json.canonical("sha256"))) {
        throw Error(DNC_ERROR_ENGINE, "engine.json was changed after it was written", manifest, damaged);
    }
    return json;
}

// What is in labels.txt, whose digest was compared.
std::vector<std::string> read_labels(const std::string& names, const std::string& place) {
    if (!is_utf8(names)) {
        throw Error(DNC_ERROR_ENGINE, "cannot read the labels: they are no UTF-8", place, "build the engine again");
    }
    return lines(names);
}

Bundle read(const Json& json, const std::string& manifest) {
    try {
        return parse(json);
    } catch (const std::invalid_argument& error) {
        const std::string what = std::string("engine.json is not what dnc writes: ") + error.what();
        throw Error(DNC_ERROR_ENGINE, what, manifest, "build the engine again");
    }
}

void number_labels(Bundle& bundle) {
    for (std::size_t index = bundle.labels.size(); index < bundle.classes(); ++index) {
        bundle.labels.push_back(std::to_string(index));
    }
}

// What lies in a folder, which read_bundle has opened.
Bundle read(const Folder& folder) {
    const std::string manifest = folder.path() + "/engine.json";
    const Json json = read_manifest(read_text(folder, "engine.json"), manifest);
    auto files = std::make_shared<Files>(folder, list_files(json, manifest));
    Bundle bundle = read(json, manifest);
    bundle.folder = folder.path();
    bundle.files = files;
    const auto labels = files->listed().find("labels.txt");
    if (labels != files->listed().end()) {
        const std::string names = read_text(folder, "labels.txt"), place = folder.path() + "/labels.txt";
        if (digest_of(names) != labels->second.sha256) {
            throw Error(DNC_ERROR_ENGINE, "the contents of labels.txt have changed", place, damaged);
        }
        bundle.labels = read_labels(names, place);
    }
    number_labels(bundle);
    return bundle;
}

// A package's file, read into memory: what is written into it afterwards is no matter.
Bundle read_file(const std::string& path) {
    const std::filesystem::path place(path);
    const Folder folder(place.has_parent_path() ? place.parent_path().string() : ".");
    File file(folder, place.filename().string());
    if (file.size() > max_package) {
        throw Error(DNC_ERROR_ENGINE, "the package is too large to be an engine", path, damaged);
    }
    const auto size = static_cast<std::size_t>(file.size());
    const auto free = [](char* bytes) { ::operator delete(bytes, alignment); };
    const std::shared_ptr<char> bytes(static_cast<char*>(::operator new(std::max<std::size_t>(size, 1), alignment)),
                                      free);
    std::size_t there = 0;
    while (const std::size_t count = file.read(bytes.get() + there, size - there)) there += count;
    return read_bundle({bytes.get(), there}, path, bytes);
}

}  // namespace

std::vector<const Head*> Bundle::box_heads() const {
    std::vector<const Head*> found;
    for (const Head& head : heads) {
        if (head.gives_boxes()) found.push_back(&head);
    }
    return found;
}

std::size_t Bundle::classes() const {
    if (heads.empty()) return 0;
    const std::vector<const Head*> boxes = box_heads();
    return boxes.empty() ? heads.back().classes : boxes.back()->columns();
}

std::string Bundle::path(const std::string& file) const {
    if (files->listed().count(file) == 0) {
        throw Error(DNC_ERROR_ENGINE, "an engine of target " + target + " has a file " + file, folder, damaged);
    }
    return folder + "/" + file;
}

Bundle read_bundle(const std::string& folder) {
    const char* make = "make one with `dnc compile`";
    std::error_code none;
    for (int tries = 0; tries < max_tries; ++tries) {
        std::optional<Folder> opened;
        try {
            opened.emplace(folder);
        } catch (const std::system_error& error) {
            if (error.code() == std::errc::not_a_directory && std::filesystem::exists(folder, none)) {
                return read_file(folder);
            }
            if (error.code() != std::errc::no_such_file_or_directory) {
                throw Error(DNC_ERROR_ENGINE, "cannot read the engine: " + error.code().message(), folder, damaged);
            }
            if (put_back(folder)) continue;
            throw Error(DNC_ERROR_ENGINE, "not an engine: the folder does not exist", folder, make);
        }
        try {
            if (!std::filesystem::exists(folder + "/engine.json", none)) {
                throw Error(DNC_ERROR_ENGINE, "not an engine: the folder has no engine.json", folder, make);
            }
            return read(*opened);
        } catch (const Error&) {
            // What was replaced meanwhile is read again: all that is read is of one engine.
            if (!opened->is_replaced()) throw;
        }
    }
    throw Error(DNC_ERROR_ENGINE, "the engine is replaced again and again", folder, "try it again");
}

Bundle read_bundle(std::string_view package, const std::string& where, std::shared_ptr<const void> owner) {
    std::map<std::string, std::string_view> members = read_package(package, where);
    const auto own = members.find("engine.json");
    if (own == members.end()) refuse_package("it has no engine.json", where);
    if (own->second.size() > max_text) refuse_package("engine.json is too large", where);
    const Json json = read_manifest(std::string(own->second), where);
    const std::map<std::string, Listed> listed = list_files(json, where);
    members.erase(own);
    for (const auto& [name, expected] : listed) {
        const auto member = members.find(name);
        if (member == members.end()) refuse_package(name + " is missing", where);
        const std::string_view content = member->second;
        if (expected.size < 0 || content.size() != static_cast<unsigned long long>(expected.size)) {
            const std::string sizes = std::to_string(content.size()) + " bytes, not " + std::to_string(expected.size);
            refuse_package(name + " has " + sizes, where);
        }
    }
    for (const auto& [name, content] : members) {
        if (listed.count(name) == 0) refuse_package(name + " is not listed in engine.json", where);
        if (digest_of(content) != listed.at(name).sha256) {
            throw Error(DNC_ERROR_ENGINE, "the contents of " + name + " have changed", where, damaged);
        }
    }
    Bundle bundle = read(json, where);
    bundle.folder = where;
    bundle.packed = true;
    const auto labels = members.find("labels.txt");
    if (labels != members.end()) {
        if (labels->second.size() > max_text) refuse_package("labels.txt is too large", where);
        bundle.labels = read_labels(std::string(labels->second), where);
    }
    number_labels(bundle);
    bundle.files = std::make_shared<Files>(listed, std::move(members), std::move(owner));
    return bundle;
}

}  // namespace dnc_runtime

#include "json.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <locale>
#include <sstream>
#include <utility>

#include "error.hpp"

namespace dnc_runtime {

namespace {

constexpr int max_depth = 64;
constexpr std::size_t max_values = std::size_t{1} << 20;
constexpr std::size_t max_number = 512;

void append_utf8(std::string& out, std::uint32_t point) {
    const auto byte = [&out](std::uint32_t bits) { out += static_cast<char>(static_cast<unsigned char>(bits)); };
    if (point < 0x80) {
        byte(point);
    } else if (point < 0x800) {
        byte(0xc0 | point >> 6);
        byte(0x80 | (point & 63));
    } else if (point < 0x10000) {
        byte(0xe0 | point >> 12);
        byte(0x80 | (point >> 6 & 63));
        byte(0x80 | (point & 63));
    } else {
        byte(0xf0 | point >> 18);
        byte(0x80 | (point >> 12 & 63));
        byte(0x80 | (point >> 6 & 63));
        byte(0x80 | (point & 63));
    }
}

// The bytes of the character that a first byte begins; 0 if none does.
std::size_t utf8_length(unsigned char first) {
    if (first < 0x80) return 1;
    if (first >= 0xc2 && first < 0xe0) return 2;
    if (first >= 0xe0 && first < 0xf0) return 3;
    return first >= 0xf0 && first < 0xf5 ? 4 : 0;
}

// The character of `length` bytes that begins at `text`, whose later bytes were checked to be 10xxxxxx.
std::uint32_t utf8_point(const char* text, std::size_t length) {
    const auto byte = [text](std::size_t place) {
        return static_cast<std::uint32_t>(static_cast<unsigned char>(text[place]));
    };
    if (length == 1) return byte(0);
    std::uint32_t point = byte(0) & (0x7fu >> length);
    for (std::size_t place = 1; place < length; ++place) point = point << 6 | (byte(place) & 63);
    return point;
}

// The bytes of the character at the start of a text; 0 if that is no UTF-8.
std::size_t checked_length(std::string_view text) {
    const std::size_t length = utf8_length(static_cast<unsigned char>(text[0]));
    if (length == 0 || length > text.size()) return 0;
    for (std::size_t later = 1; later < length; ++later) {
        if ((static_cast<unsigned char>(text[later]) & 0xc0) != 0x80) return 0;
    }
    const std::uint32_t point = utf8_point(text.data(), length);
    const bool overlong = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
    return overlong || point > 0x10ffff || (point >= 0xd800 && point < 0xe000) ? 0 : length;
}

void append_escape(std::string& out, std::uint32_t unit) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += "0123456789abcdef"[unit >> shift & 15];
}

// json.dumps of a string, with ensure_ascii.
void append_string(std::string& out, const std::string& text) {
    out += '"';
    for (std::size_t place = 0; place < text.size();) {
        const std::size_t length = utf8_length(static_cast<unsigned char>(text[place]));
        const std::uint32_t point = utf8_point(text.data() + place, length);
        place += length;
        static constexpr std::string_view plain = "\"\\\n\r\t\f\b", letters = "\"\\nrtfb";
        const std::size_t known = point < 0x80 ? plain.find(static_cast<char>(point)) : std::string_view::npos;
        if (known != std::string_view::npos) {
            out += '\\';
            out += letters[known];
        } else if (point >= 0x20 && point < 0x7f) {
            out += static_cast<char>(point);
        } else if (point < 0x10000) {
            append_escape(out, point);
        } else {
            append_escape(out, 0xd800 + ((point - 0x10000) >> 10));
            append_escape(out, 0xdc00 + ((point - 0x10000) & 0x3ff));
        }
    }
    out += '"';
}

}  // namespace

class JsonParser {
public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json document() {
        Json value = parse(0);
        skip_blanks();
        if (place_ != text_.size()) fail("something follows the end");
        return value;
    }

private:
    [[noreturn]] void fail(const std::string& what) const {
        throw Error(DNC_ERROR_ENGINE, "no JSON: " + what + ", at byte " + std::to_string(place_));
    }

    int peek() const { return place_ < text_.size() ? static_cast<unsigned char>(text_[place_]) : -1; }

    bool take(char wanted) {
        if (peek() != wanted) return false;
        ++place_;
        return true;
    }

    bool take(std::string_view word) {
        if (text_.substr(place_, word.size()) != word) return false;
        place_ += word.size();
        return true;
    }

    void skip_blanks() {
        while (place_ < text_.size() && std::string_view(" \t\n\r").find(text_[place_]) != std::string_view::npos) {
            ++place_;
        }
    }

    Json parse(int depth) {
        if (depth > max_depth) fail("it nests too deep");
        if (++values_ > max_values) fail("it has too many values");
        skip_blanks();
        Json value;
        if (take('{')) {
            value.value_ = object(depth);
        } else if (take('[')) {
            value.value_ = array(depth);
        } else if (take('"')) {
            value.value_ = string();
        } else if (take("true")) {
            value.value_ = true;
        } else if (take("false")) {
            value.value_ = false;
        } else if (!take("null")) {
            value.value_ = Json::Number{number()};
        }
        return value;
    }

    Json::Object object(int depth) {
        Json::Object members;
        skip_blanks();
        if (take('}')) return members;
        do {
            skip_blanks();
            if (!take('"')) fail("a name is missing");
            std::string name = string();
            skip_blanks();
            if (!take(':')) fail("a colon is missing");
            members.push_back({std::move(name), parse(depth + 1)});
            skip_blanks();
        } while (take(','));
        if (!take('}')) fail("an object does not end");
        std::vector<std::string_view> names;
        for (const Json::Member& member : members) names.push_back(member.name);
        std::sort(names.begin(), names.end());
        if (std::adjacent_find(names.begin(), names.end()) != names.end()) fail("a name stands twice in an object");
        return members;
    }

    Json::Array array(int depth) {
        Json::Array items;
        skip_blanks();
        if (take(']')) return items;
        do {
            items.push_back(parse(depth + 1));
            skip_blanks();
        } while (take(','));
        if (!take(']')) fail("an array does not end");
        return items;
    }

    std::string string() {
        std::string out;
        for (;;) {
            const int next = peek();
            if (next < 0x20) fail("a string does not end, or has a control character");
            if (take('"')) return out;
            if (take('\\')) {
                escape(out);
                continue;
            }
            const std::size_t length = checked_length(text_.substr(place_));
            if (length == 0) fail("a character is no UTF-8");
            out.append(text_.substr(place_, length));
            place_ += length;
        }
    }

    void escape(std::string& out) {
        static constexpr std::string_view letters = "\"\\/bfnrt", plain = "\"\\/\b\f\n\r\t";
        const int next = peek();
        const std::size_t known = next < 0 ? std::string_view::npos : letters.find(static_cast<char>(next));
        if (known != std::string_view::npos) {
            ++place_;
            out += plain[known];
            return;
        }
        if (!take('u')) fail("an escape is unknown");
        std::uint32_t point = unit();
        if (point >= 0xd800 && point < 0xdc00) {
            const std::size_t before = place_;
            const std::uint32_t low = take("\\u") ? unit() : 0;
            if (low >= 0xdc00 && low < 0xe000) {
                point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
            } else {
                place_ = before;
            }
        }
        append_utf8(out, point);
    }

    std::uint32_t unit() {
        std::uint32_t value = 0;
        for (int digit = 0; digit < 4; ++digit) {
            const int next = peek();
            const bool decimal = next >= '0' && next <= '9';
            const int letter = next | 0x20;
            if (!decimal && (letter < 'a' || letter > 'f')) fail("an escape has no four digits");
            value = value << 4 | static_cast<std::uint32_t>(decimal ? next - '0' : letter - 'a' + 10);
            ++place_;
        }
        return value;
    }

    std::size_t digits() {
        const std::size_t before = place_;
        while (peek() >= '0' && peek() <= '9') ++place_;
        return place_ - before;
    }

    std::string number() {
        const std::size_t start = place_;
        const bool negative = take('-');
        // Python writes these and reads them; where a finite number is wanted they are refused.
        if (!take("Infinity") && (negative || !take("NaN"))) {
            if (!take('0') && digits() == 0) fail("no value");
            if (take('.') && digits() == 0) fail("a number ends with its point");
            if (take('e') || take('E')) {
                if (!take('+')) take('-');
                if (digits() == 0) fail("an exponent has no digits");
            }
        }
        if (place_ - start > max_number) fail("a number is too long");
        return std::string(text_.substr(start, place_ - start));
    }

    std::string_view text_;
    std::size_t place_ = 0;
    std::size_t values_ = 0;
};

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const std::size_t length = checked_length(text);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

std::string Json::canonical(std::string_view except) const {
    struct Writer {
        std::string out;

        void write(const Json& json, std::string_view left_out) {
            if (const bool* truth = json.boolean()) {
                out += *truth ? "true" : "false";
            } else if (const auto* number = std::get_if<Number>(&json.value_)) {
                out += number->text;
            } else if (const std::string* text = json.string()) {
                append_string(out, *text);
            } else if (const Array* items = json.array()) {
                std::string_view separator = "[";
                for (const Json& item : *items) {
                    out += separator;
                    write(item, "");
                    separator = ", ";
                }
                out += items->empty() ? "[]" : "]";
            } else if (const Object* members = json.object()) {
                write(*members, left_out);
            } else {
                out += "null";
            }
        }

        void write(const Object& members, std::string_view left_out) {
            std::vector<const Member*> sorted;
            for (const Member& member : members) {
                if (left_out.empty() || member.name != left_out) sorted.push_back(&member);
            }
            // The order of UTF-8's bytes is that of the characters, by which Python sorts.
            const auto before = [](const Member* one, const Member* other) { return one->name < other->name; };
            std::sort(sorted.begin(), sorted.end(), before);
            std::string_view separator = "{";
            for (const Member* member : sorted) {
                out += separator;
                append_string(out, member->name);
                out += ": ";
                write(member->value, "");
                separator = ", ";
            }
            out += sorted.empty() ? "{}" : "}";
        }
    };
    Writer writer;
    writer.write(*this, except);
    return std::move(writer.out);
}

std::optional<long long> Json::integer() const {
    const auto* number = std::get_if<Number>(&value_);
    if (number == nullptr || number->text.size() > 18) return std::nullopt;
    const bool negative = number->text[0] == '-';
    long long value = 0;
    for (const char digit : std::string_view(number->text).substr(negative ? 1 : 0)) {
        if (digit < '0' || digit > '9') return std::nullopt;
        value = 10 * value + (digit - '0');
    }
    return negative ? -value : value;
}

std::optional<double> Json::number() const {
    const auto* number = std::get_if<Number>(&value_);
    if (number == nullptr) return std::nullopt;
    // Unlike strtod this minds no locale that the program may have set, and unlike from_chars every compiler has it.
    std::istringstream stream(number->text);
    stream.imbue(std::locale::classic());
    double value = 0;
    stream >> value;
    if (stream.fail() || !stream.eof() || !std::isfinite(value)) return std::nullopt;
    return value;
}

const Json* Json::find(std::string_view name) const {
    const Object* members = object();
    if (members == nullptr) return nullptr;
    const auto found =
        std::find_if(members->begin(), members->end(), [name](const Member& m) { return m.name == name; });
    return found == members->end() ? nullptr : &found->value;
}

}  // namespace dnc_runtime

// JSON as Python's json module reads and writes it: engine.json's digest is over what Python would write.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace dnc_runtime {

// Whether a text is UTF-8 throughout.
bool is_utf8(std::string_view text);

// A value. Numbers are kept as written, because a digest is over their text; strings are UTF-8, in which a lone
// surrogate, which JSON can escape, has three bytes as if it were a character.
class Json {
public:
    struct Number {
        std::string text;
    };
    struct Member;
    using Array = std::vector<Json>;
    using Object = std::vector<Member>;  // in the order of the file; no name twice

    // Throws Error for what is no JSON, nests deeper than 64, or has over a million values.
    static Json parse(std::string_view text);

    // json.dumps(value, sort_keys=True), for numbers that Python wrote; without the member `except` of an object.
    std::string canonical(std::string_view except = "") const;

    bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
    const bool* boolean() const { return std::get_if<bool>(&value_); }
    const std::string* string() const { return std::get_if<std::string>(&value_); }
    const Array* array() const { return std::get_if<Array>(&value_); }
    const Object* object() const { return std::get_if<Object>(&value_); }

    // A whole number of at most 18 digits that is written without point and exponent.
    std::optional<long long> integer() const;

    // A finite number.
    std::optional<double> number() const;

    // The member of an object; null if there is none, or if this is no object.
    const Json* find(std::string_view name) const;

private:
    friend class JsonParser;
    std::variant<std::monostate, bool, Number, std::string, Array, Object> value_;
};

struct Json::Member {
    std::string name;
    Json value;
};

}  // namespace dnc_runtime

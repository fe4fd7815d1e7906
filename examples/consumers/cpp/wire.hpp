// Decodes what docs/wire.md describes, with msgpack-cxx; records are JSON objects.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace wire {

using Json = nlohmann::ordered_json;

// The records of any schema: `t1`, `k1` and `latest` hold one, `b1` and `c1` an array of them.
// Throws std::exception when the bytes are none of it.
Json decode(std::string_view schema, std::string_view data);

}  // namespace wire

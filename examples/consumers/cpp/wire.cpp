#include "wire.hpp"

#include <array>
#include <cmath>
#include <set>
#include <stdexcept>

#include <msgpack.hpp>

namespace wire {
namespace {

using msgpack::object;
using msgpack::type::object_type;

// clang-format off
constexpr std::array tick_names = {
    "time", "lastPrice", "open", "high", "low", "lastClose", "amount", "volume", "pvolume",
    "stockStatus", "openInt", "transactionNum", "lastSettlementPrice", "settlementPrice", "pe",
    "askPrice", "bidPrice", "askVol", "bidVol", "volRatio", "speed1Min", "speed5Min", "extra",
    "flags"};

constexpr std::array bar_names = {
    "time", "open", "high", "low", "close", "volume", "amount", "settelementPrice",
    "openInterest", "preClose", "suspendFlag", "closed", "extra"};

const std::set<std::string_view> prices = {
    "lastPrice", "open", "high", "low", "lastClose", "close", "lastSettlementPrice",
    "settlementPrice", "askPrice", "bidPrice", "settelementPrice", "preClose"};
// clang-format on

std::string hex(const msgpack::object_bin& bytes) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (uint32_t at = 0; at < bytes.size; ++at) {
        const auto byte = static_cast<unsigned char>(bytes.ptr[at]);
        text += {digits[byte >> 4], digits[byte & 15]};
    }
    return text;
}

// What JSON can hold: null for NaN and infinities, hex for bytes.
Json plain(const object& value) {
    switch (value.type) {
        case object_type::BOOLEAN:
            return value.via.boolean;
        case object_type::POSITIVE_INTEGER:
            return value.via.u64;
        case object_type::NEGATIVE_INTEGER:
            return value.via.i64;
        case object_type::FLOAT32:
        case object_type::FLOAT64:
            return std::isfinite(value.via.f64) ? Json(value.via.f64) : Json(nullptr);
        case object_type::STR:
            return value.as<std::string>();
        case object_type::BIN:
            return hex(value.via.bin);
        case object_type::ARRAY: {
            Json values = Json::array();
            for (const object& one : value.via.array) values.push_back(plain(one));
            return values;
        }
        case object_type::MAP: {
            Json values = Json::object();
            for (const auto& [key, one] : value.via.map) {
                values[key.as<std::string>()] = plain(one);
            }
            return values;
        }
        default:
            return nullptr;
    }
}

// Yuan: an integer is scaled by 10,000, a float is the price itself.
Json price(const object& value) {
    if (value.type == object_type::ARRAY) {
        Json values = Json::array();
        for (const object& one : value.via.array) values.push_back(price(one));
        return values;
    }
    const bool scaled = value.type == object_type::POSITIVE_INTEGER ||
                        value.type == object_type::NEGATIVE_INTEGER;
    return scaled ? Json(value.as<double>() / 10'000) : plain(value);
}

const object& element(const object& value, uint32_t at) {
    if (value.type != object_type::ARRAY || value.via.array.size <= at) {
        throw std::runtime_error("not an array of so many elements");
    }
    return value.via.array.ptr[at];
}

// Adds an array's elements by name; later versions may have more elements.
template <std::size_t size>
Json named(Json values, const std::array<const char*, size>& names, const object& row) {
    for (uint32_t at = 0; at < size; ++at) {
        const object& value = element(row, at);
        values[names[at]] = prices.count(names[at]) ? price(value) : plain(value);
    }
    if (values["extra"].is_null()) values["extra"] = Json::object();
    return values;
}

}  // namespace

Json decode(std::string_view schema, std::string_view data) {
    const msgpack::object_handle handle = msgpack::unpack(data.data(), data.size());
    const object& value = handle.get();
    if (schema == "t1") return named(Json::object(), tick_names, value);
    if (schema == "k1") return named(Json::object(), bar_names, value);
    if (schema == "latest") {
        return named({{"id", plain(element(value, 0))}}, tick_names, element(value, 1));
    }
    if (schema != "b1" && schema != "c1") {
        throw std::runtime_error("schema " + std::string(schema) + " is not known");
    }
    Json records = Json::array();
    for (const object& row : value.as<std::vector<object>>()) {
        const Json code = plain(element(row, 0));
        const Json second = plain(element(row, 1));
        if (schema == "b1") {
            records.push_back(
                named({{"code", code}, {"id", second}}, tick_names, element(row, 2)));
        } else {
            const Json id = plain(element(row, 2));
            records.push_back(named({{"code", code}, {"period", second}, {"id", id}}, bar_names,
                                    element(row, 3)));
        }
    }
    return records;
}

}  // namespace wire

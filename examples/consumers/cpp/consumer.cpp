// Follows ticks with XREAD: JSON lines on standard output, a position that survives a restart.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <hiredis/hiredis.h>

#include "wire.hpp"

namespace {

using wire::Json;
using Clock = std::chrono::steady_clock;
using Words = std::vector<std::string>;

volatile std::sig_atomic_t stopping = 0;

void warn(const std::string& text) { std::cerr << "warning: " << text << std::endl; }

// One connection; every error is a std::runtime_error.
class Server {
public:
    using Reply = std::unique_ptr<redisReply, void (*)(void*)>;

    // redis://[[user]:password@]host[:port][/database]
    explicit Server(const std::string& url) {
        static const std::string scheme = "redis://";
        if (url.rfind(scheme, 0) != 0) throw std::runtime_error("not a redis:// URL");
        std::string host = url.substr(scheme.size());
        std::string user = cut_before(host, '@');
        const std::string password = cut_behind(user, ':');
        const std::string database = cut_behind(host, '/');
        const std::string port = cut_behind(host, ':');
        context_.reset(redisConnect(host.c_str(), port.empty() ? 6379 : std::stoi(port)));
        if (!context_ || context_->err) {
            throw std::runtime_error(context_ ? context_->errstr : "out of memory");
        }
        if (!password.empty()) {
            call(user.empty() ? Words{"AUTH", password} : Words{"AUTH", user, password});
        }
        if (!database.empty()) call({"SELECT", database});
    }

    void send(const Words& command) {
        std::vector<const char*> words;
        std::vector<size_t> sizes;
        for (const std::string& word : command) {
            words.push_back(word.data());
            sizes.push_back(word.size());
        }
        redisAppendCommandArgv(context_.get(), static_cast<int>(words.size()), words.data(),
                               sizes.data());
    }

    Reply receive() {
        void* answer = nullptr;
        if (redisGetReply(context_.get(), &answer) != REDIS_OK) {
            throw std::runtime_error(context_->errstr);
        }
        Reply reply(static_cast<redisReply*>(answer), freeReplyObject);
        if (reply->type == REDIS_REPLY_ERROR) throw std::runtime_error(text(*reply));
        return reply;
    }

    Reply call(const Words& command) {
        send(command);
        return receive();
    }

    static std::string text(const redisReply& reply) { return {reply.str, reply.len}; }

private:
    // Each takes a part off the text, which is empty where the mark is not in it.
    static std::string cut_before(std::string& text, char mark) {
        const size_t at = text.rfind(mark);
        if (at == text.npos) return "";
        const std::string part = text.substr(0, at);
        text.erase(0, at + 1);
        return part;
    }

    static std::string cut_behind(std::string& text, char mark) {
        const size_t at = text.find(mark);
        if (at == text.npos) return "";
        const std::string part = text.substr(at + 1);
        text.erase(at);
        return part;
    }

    std::unique_ptr<redisContext, void (*)(redisContext*)> context_{nullptr, redisFree};
};

// The epoch of each market and the last id read of each stream, in a file if there is one.
class Position {
public:
    std::map<std::string, std::string> epochs, last;

    explicit Position(std::filesystem::path file) : file_(std::move(file)) {
        std::ifstream stored(file_);
        if (!stored) return;
        const Json document = Json::parse(stored);
        document.at("epochs").get_to(epochs);
        document.at("last").get_to(last);
    }

    // Replaces the file as a whole: a reader finds the old position or the new one.
    void store() const {
        if (file_.empty()) return;
        const std::filesystem::path beside = file_.string() + ".new";
        std::ofstream stored(beside);
        stored << Json{{"epochs", epochs}, {"last", last}};
        stored.close();
        if (!stored) throw std::runtime_error("cannot write " + beside.string());
        std::filesystem::rename(beside, file_);
    }

private:
    std::filesystem::path file_;
};

struct Entry {
    std::string id, field, value;
};
using Read = std::map<std::string, std::vector<Entry>>;

// Reads streams of ticks, or feeds of markets, one batch at a time.
class Consumer {
public:
    // streams: stream to its code; a feed has none.
    Consumer(Server& server, const std::string& prefix, std::map<std::string, std::string> streams,
             Position& position)
        : server_(server), prefix_(prefix), streams_(std::move(streams)), position_(position) {
        const size_t start = prefix.size() + 2;  // {prefix:market}
        for (const auto& [stream, code] : streams_) {
            markets_.insert(stream.substr(start, stream.find('}') - start));
        }
    }

    // Prints ticks until told to stop, or until none came for so long.
    void run(double until_idle_s) {
        check(streams_);
        auto heard = Clock::now();
        const auto idle_s = [&] {
            return std::chrono::duration<double>(Clock::now() - heard).count();
        };
        // 0 would be for ever.
        const int block = static_cast<int>(std::clamp(until_idle_s * 1000, 1.0, block_ms));
        while (!stopping) {
            const Read read = next(block);
            if (read.empty()) {
                if (idle_s() >= until_idle_s) break;
                continue;
            }
            for (const auto& [stream, entries] : read) {
                for (const Entry& entry : entries) print(streams_.at(stream), entry);
                position_.last[stream] = entries.back().id;
            }
            // First the ticks, then the position: see ../README.md.
            if (!std::cout.flush()) throw std::runtime_error("cannot write to standard output");
            position_.store();
            heard = Clock::now();
        }
    }

private:
    static constexpr double block_ms = 1000;  // also how soon it stops when told
    static constexpr const char* count = "100";

    // Waits for the next entries of any stream, then looks at what was passed over.
    Read next(int block) {
        Words command = {"XREAD", "COUNT", count, "BLOCK", std::to_string(block), "STREAMS"};
        for (const auto& [stream, code] : streams_) command.push_back(stream);
        for (const auto& [stream, code] : streams_) {
            const auto last = position_.last.find(stream);
            command.push_back(last == position_.last.end() ? "0-0" : last->second);
        }
        const Server::Reply answer = server_.call(command);
        Read read;
        for (size_t at = 0; at < answer->elements; ++at) {
            const redisReply& stream = *answer->element[at];
            std::vector<Entry>& entries = read[Server::text(*stream.element[0])];
            const redisReply& rows = *stream.element[1];
            for (size_t row = 0; row < rows.elements; ++row) {
                const redisReply& fields = *rows.element[row]->element[1];
                entries.push_back({Server::text(*rows.element[row]->element[0]),
                                   Server::text(*fields.element[0]),
                                   Server::text(*fields.element[1])});
            }
        }
        check(read);
        return read;
    }

    // Warns of a new epoch and of positions that are gone: XREAD itself says nothing. Behind a
    // read, for trimming goes from the oldest: what was read last is still there, so nothing
    // between it and the news was trimmed.
    template <typename Streams>
    void check(const Streams& streams) {
        for (const std::string& market : markets_) {
            server_.send({"GET", "{" + prefix_ + ":" + market + "}:epoch"});
        }
        for (const auto& [stream, _] : streams) {
            const auto last = position_.last.find(stream);
            if (last != position_.last.end()) {
                server_.send({"XRANGE", stream, last->second, "+", "COUNT", "1"});
            }
        }
        for (const std::string& market : markets_) {
            const Server::Reply reply = server_.receive();
            if (reply->type == REDIS_REPLY_NIL) continue;
            const std::string now = Server::text(*reply);
            std::string& known = position_.epochs[market];
            if (!known.empty() && known != now) {
                warn(market + ": new epoch " + now + " after " + known +
                     ": ticks may be lost or told again");
            }
            known = now;
        }
        for (const auto& [stream, _] : streams) {
            const auto last = position_.last.find(stream);
            if (last == position_.last.end()) continue;
            const Server::Reply found = server_.receive();
            const std::string first =
                found->elements ? Server::text(*found->element[0]->element[0]) : "nothing";
            if (first == last->second || told_gone_[stream] == last->second) continue;
            told_gone_[stream] = last->second;
            warn(stream + ": position " + last->second + " is gone, " + first +
                 " follows: ticks may be missing");
        }
    }

    // Prints the ticks of an entry; a feed's entry with bars (c1) has none.
    static void print(const std::string& code, const Entry& entry) {
        if (!code.empty()) {
            Json tick = {{"code", code}, {"id", entry.id}};
            tick.update(wire::decode("t1", entry.value));
            std::cout << tick << '\n';
        } else if (entry.field == "b1") {
            for (const Json& tick : wire::decode("b1", entry.value)) std::cout << tick << '\n';
        }
    }

    Server& server_;
    std::string prefix_;
    std::map<std::string, std::string> streams_;
    std::set<std::string> markets_;
    std::map<std::string, std::string> told_gone_;
    Position& position_;
};

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t at = 0; at < hex.size(); at += 2) {
        bytes += static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16));
    }
    return bytes;
}

void decode_vectors(const std::string& file) {
    std::ifstream text(file);
    if (!text) throw std::runtime_error("cannot read " + file);
    const Json document = Json::parse(text);
    for (const Json& vector : document.at("vectors")) {
        const Json value = wire::decode(vector.at("schema").get<std::string>(),
                                        from_hex(vector.at("bytes").get<std::string>()));
        std::cout << Json{{"name", vector.at("name")}, {"value", value}} << '\n';
    }
}

int consume(const Words& arguments) {
    std::map<std::string, std::string> options = {{"--url", "redis://127.0.0.1:6379"},
                                                  {"--prefix", "qmt"},
                                                  {"--position", ""},
                                                  {"--until-idle", "inf"},
                                                  {"--decode-vectors", ""}};
    Words codes, markets;
    for (size_t at = 0; at < arguments.size(); ++at) {
        const std::string& word = arguments[at];
        if (word.rfind("--", 0) != 0) {
            codes.push_back(word);
        } else if (at + 1 < arguments.size() && word == "--market") {
            markets.push_back(arguments[++at]);
        } else if (at + 1 < arguments.size() && options.count(word)) {
            options[word] = arguments[++at];
        } else {
            throw std::runtime_error("option " + word + " is not known or lacks its value");
        }
    }
    if (!options["--decode-vectors"].empty()) {
        decode_vectors(options["--decode-vectors"]);
        return EXIT_SUCCESS;
    }
    if (codes.empty() == markets.empty()) {
        throw std::runtime_error("name codes, or markets with --market");
    }
    const std::string& prefix = options["--prefix"];
    std::map<std::string, std::string> streams;
    for (const std::string& market : markets) streams["{" + prefix + ":" + market + "}:feed"] = "";
    for (const std::string& code : codes) {
        const std::string market = code.substr(code.rfind('.') + 1);
        streams["{" + prefix + ":" + market + "}:tick:" + code] = code;
    }
    std::signal(SIGINT, [](int) { stopping = 1; });
    std::signal(SIGTERM, [](int) { stopping = 1; });
    Server server(options["--url"]);
    Position position(options["--position"]);
    Consumer(server, prefix, streams, position).run(std::stod(options["--until-idle"]));
    return EXIT_SUCCESS;
}

}  // namespace

int main(int count, char** words) {
    try {
        return consume(Words(words + 1, words + count));
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << std::endl;
        return EXIT_FAILURE;
    }
}

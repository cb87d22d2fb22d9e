// What the C interfaces of verilated designs share: payloads as 32-bit words, and random stalls.

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtq {

// Payloads as 32-bit words, least significant first: Verilator's ports are integers up to 64 bits,
// arrays of words beyond.
template <typename Port>
void load(Port& port, const uint32_t* words) {
    if constexpr (sizeof(Port) <= 4) {
        port = static_cast<Port>(words[0]);
    } else if constexpr (sizeof(Port) == 8 && std::is_integral_v<Port>) {
        port = words[0] | static_cast<uint64_t>(words[1]) << 32;
    } else {
        for (std::size_t i = 0; i < sizeof(Port) / 4; ++i) port[i] = words[i];
    }
}

template <typename Port>
void store(const Port& port, uint32_t* words) {
    if constexpr (sizeof(Port) <= 4) {
        words[0] = port;
    } else if constexpr (sizeof(Port) == 8 && std::is_integral_v<Port>) {
        words[0] = static_cast<uint32_t>(port);
        words[1] = static_cast<uint32_t>(port >> 32);
    } else {
        for (std::size_t i = 0; i < sizeof(Port) / 4; ++i) words[i] = port[i];
    }
}

// Stalls: a stream waits in a cycle with the given probability in 1/256.
class Stalls {
public:
    explicit Stalls(uint64_t seed) : state_{seed * 2654435761u + 88172645463325252u} {}
    bool wait(uint32_t probability) {
        if (probability == 0) return false;
        state_ ^= state_ << 13;  // xorshift64
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return (state_ >> 32 & 0xff) < probability;
    }

private:
    uint64_t state_;
};

}  // namespace kvtq

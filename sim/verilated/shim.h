// What the C interfaces of verilated designs share: a model with its clock, payloads as 32-bit
// words, and random stalls.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "verilated.h"
#if KVTQ_TRACE
#include "verilated_vcd_c.h"
#endif

// Verilator spells the double underscore of a port's name so.
#define PORT(stream, field) stream##___05F##field

namespace kvtq {

// A verilated model and its clock; reset when it is made.
template <typename Model>
class Clocked {
public:
    // Waves are written to the file unless it is null, or the model was made without.
    explicit Clocked(const char* waves = nullptr) {
        context_.traceEverOn(waves != nullptr);
        model_ = std::make_unique<Model>(&context_);
#if KVTQ_TRACE
        if (waves) {
            trace_ = std::make_unique<VerilatedVcdC>();
            model_->trace(trace_.get(), 99);
            trace_->open(waves);
        }
#endif
        model_->rst = 1;
        cycle();
        cycle();
        model_->rst = 0;
    }
    ~Clocked() {
#if KVTQ_TRACE
        if (trace_) trace_->close();
#endif
        model_->final();
    }
    Model& model() { return *model_; }

    // A rising edge of the clock, and a falling one.
    void cycle() {
        for (int level : {1, 0}) {
            model_->clk = level;
            model_->eval();
            context_.timeInc(5);
#if KVTQ_TRACE
            if (trace_) trace_->dump(context_.time());
#endif
        }
    }

    // Run `step(cycle)`, which moves the clock once, until it has returned true (nothing is owed
    // any more) in as many cycles as `watch`: they catch what should not have come. Returns how
    // many cycles that took, at most `limit`.
    template <typename Step>
    uint64_t run(uint64_t limit, uint64_t watch, Step step) {
        uint64_t cycles = 0;
        for (; cycles < limit && watch; ++cycles) watch -= step(cycles);
        return cycles;
    }

private:
    VerilatedContext context_;
    std::unique_ptr<Model> model_;
#if KVTQ_TRACE
    std::unique_ptr<VerilatedVcdC> trace_;
#endif
};

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

// What the C interfaces of verilated designs share: a model with its clock, payloads as 32-bit
// words, streams with random stalls, and the functions that Python calls.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>

#include "interface.h"  // made of interface.py
#include "verilated.h"
#if KVTQ_TRACE
#include "verilated_vcd_c.h"
#endif

// Verilator spells the double underscore of a port's name so.
#define PORT(stream, field) stream##___05F##field

// One stream of a call, and the ports of the model `m` that carry it.
#define STREAM(call, stream) \
    {call.stream, m.PORT(stream, payload), m.PORT(stream, valid), m.PORT(stream, ready)}

// What Python calls. A `Simulation` is made from the name of a file of waves, or null.
#define KVTQ_DESIGN(Simulation, Call)                                                              \
    extern "C" {                                                                                   \
    void* kvtq_open(const char* waves) { return new Simulation{waves}; }                           \
    void kvtq_run(void* design, Call* call) { static_cast<Simulation*>(design)->run(*call); }      \
    void kvtq_close(void* design) { delete static_cast<Simulation*>(design); }                     \
    }

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

// Stalls: a stream waits in a cycle with the given probability, of UNIT.
class Stalls {
public:
    explicit Stalls(uint64_t seed) : state_{seed * 2654435761u + 88172645463325252u} {}
    bool wait(uint32_t probability) {
        if (probability == 0) return false;
        state_ ^= state_ << 13;  // xorshift64
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return (state_ >> 32) % UNIT < probability;
    }

private:
    uint64_t state_;
};

// A stream into the model: a payload is held until it is taken.
template <typename Payload>
class Input {
public:
    Input(Stream& stream, Payload& payload, CData& valid, const CData& ready)
        : stream_{stream}, payload_{payload}, valid_{valid}, ready_{ready} {}
    void offer(Stalls& stalls) {
        if (valid_ || stream_.done == stream_.count || stalls.wait(stream_.stall)) return;
        load(payload_, stream_.payloads + stream_.done * stream_.words);
        valid_ = 1;
    }
    void sample(uint64_t) { taken_ = valid_ && ready_; }
    void step(uint64_t cycle) {
        if (!taken_) return;
        if (stream_.cycles) stream_.cycles[stream_.done] = cycle;
        ++stream_.done;
        valid_ = 0;
    }
    void rest() { valid_ = 0; }

private:
    Stream& stream_;
    Payload& payload_;
    CData& valid_;
    const CData& ready_;
    bool taken_ = false;
};

// A stream out of the model.
template <typename Payload>
class Output {
public:
    Output(Stream& stream, const Payload& payload, const CData& valid, CData& ready)
        : stream_{stream}, payload_{payload}, valid_{valid}, ready_{ready} {}
    void offer(Stalls& stalls) { ready_ = !stalls.wait(stream_.stall); }
    void sample(uint64_t cycle) {
        if (!valid_ || !ready_) return;
        if (stream_.done < stream_.count) {
            store(payload_, stream_.payloads + stream_.done * stream_.words);
            if (stream_.cycles) stream_.cycles[stream_.done] = cycle;
        }
        ++stream_.done;
    }
    void step(uint64_t) {}
    void rest() { ready_ = 0; }

private:
    Stream& stream_;
    const Payload& payload_;
    const CData& valid_;
    CData& ready_;
};

// All streams of a model, in the order in which stalls are drawn for them.
template <typename... Streams>
class Together {
public:
    explicit Together(Streams... streams) : streams_{streams...} {}
    // Before the clock edge: what the streams show in this cycle.
    void offer(Stalls& stalls) {
        std::apply([&](auto&... stream) { (stream.offer(stalls), ...); }, streams_);
    }
    // When the model has seen it: what moves.
    void sample(uint64_t cycle) {
        std::apply([&](auto&... stream) { (stream.sample(cycle), ...); }, streams_);
    }
    // After the clock edge.
    void step(uint64_t cycle) {
        std::apply([&](auto&... stream) { (stream.step(cycle), ...); }, streams_);
    }
    // Nothing is offered any more.
    void rest() {
        std::apply([&](auto&... stream) { (stream.rest(), ...); }, streams_);
    }

private:
    std::tuple<Streams...> streams_;
};

}  // namespace kvtq

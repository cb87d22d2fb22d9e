// The common part of the verilated designs' C interfaces: a model with its clock, payloads as
// 32-bit words, streams with random stalls, and the functions that Python calls.

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

// A port's name: Verilator spells the double underscore as ___05F.
#define PORT(stream, field) stream##___05F##field

// One stream of a call, and the ports of the model `m` that carry it.
#define STREAM(call, stream) \
    {call.stream, m.PORT(stream, payload), m.PORT(stream, valid), m.PORT(stream, ready)}

// The functions that Python calls. A `Simulation` is constructed from the name of a waves file, or
// null.
#define KVTQ_DESIGN(Simulation, Call)                                                              \
    extern "C" {                                                                                   \
    void* kvtq_open(const char* waves) { return new Simulation{waves}; }                           \
    void kvtq_run(void* design, Call* call) { static_cast<Simulation*>(design)->run(*call); }      \
    void kvtq_close(void* design) { delete static_cast<Simulation*>(design); }                     \
    }

namespace kvtq {

// A verilated model and its clock. The constructor resets the model.
template <typename Model>
class Clocked {
public:
    // Write waves to the file, unless the name is null or the model was built without tracing.
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

    // Run one clock cycle: a rising edge, then a falling edge; of quick Verilog (quick_verilog.py),
    // in which either edge is an active one, one edge.
    void cycle() {
        for (int edge = 0; edge < KVTQ_EDGES; ++edge) {
            model_->clk = !model_->clk;
            model_->eval();
            context_.timeInc(5);
#if KVTQ_TRACE
            if (trace_) trace_->dump(context_.time());
#endif
        }
    }

    // Call `step(cycle)`, which runs one clock cycle and returns whether nothing is owed any more,
    // until it has returned true `watch` times. These extra cycles catch transfers that should not
    // come. Return the number of cycles, at most `limit`.
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

// Payloads are 32-bit words, least significant first. Verilator's ports are integers up to 64 bits
// and arrays of words beyond.
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

// Draws random stalls: a stream waits in a cycle with the given probability, in units of 1 / UNIT.
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

// Drives a stream into the model. A payload is held until the model takes it.
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

// Receives a stream out of the model.
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

// All streams of a model. Stalls are drawn in the order of the streams.
template <typename... Streams>
class Together {
public:
    explicit Together(Streams... streams) : streams_{streams...} {}
    // Drive the streams for this cycle, before the clock edge.
    void offer(Stalls& stalls) {
        std::apply([&](auto&... stream) { (stream.offer(stalls), ...); }, streams_);
    }
    // Note the transfers of this cycle, once the model has been evaluated.
    void sample(uint64_t cycle) {
        std::apply([&](auto&... stream) { (stream.sample(cycle), ...); }, streams_);
    }
    // Complete the transfers, after the clock edge.
    void step(uint64_t cycle) {
        std::apply([&](auto&... stream) { (stream.step(cycle), ...); }, streams_);
    }
    // Offer and accept nothing any more.
    void rest() {
        std::apply([&](auto&... stream) { (stream.rest(), ...); }, streams_);
    }

private:
    std::tuple<Streams...> streams_;
};

}  // namespace kvtq

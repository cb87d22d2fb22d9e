// A small C interface around the verilated engine: whole jobs run without returning to Python.
//
// Compiled together with Verilator's model of one configuration; sim/verilated/engine.py calls it.

#include "Vkvtq_engine.h"
#include "shim.h"

namespace {

// Runs the engine on streams that Python has filled.
class Simulation {
public:
    explicit Simulation(const char* waves) : clocked_{waves} {}

    void run(kvtq::EngineCall& call) {
        auto& m = clocked_.model();
        kvtq::Stalls stalls{call.seed};
        kvtq::Together streams{
            kvtq::Input STREAM(call, job),    kvtq::Input STREAM(call, value_exponent),
            kvtq::Input STREAM(call, query),  kvtq::Input STREAM(call, keys),
            kvtq::Input STREAM(call, values), kvtq::Output STREAM(call, output),
        };
        call.cycles = clocked_.run(call.cycle_limit, 64, [&](uint64_t now) {
            streams.offer(stalls);
            m.eval();
            streams.sample(now);
            clocked_.cycle();
            streams.step(now);
            return call.output.done >= call.output.count;
        });
        streams.rest();
        kvtq::store(m.counters, call.counters);
    }

private:
    kvtq::Clocked<Vkvtq_engine> clocked_;
};

}  // namespace

KVTQ_DESIGN(Simulation, kvtq::EngineCall)

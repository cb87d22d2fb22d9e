// A small C interface around the verilated append path: many tasks run without returning to Python.
// It also plays the tables of one head, which answer one cycle after the address.
//
// Compiled together with Verilator's model of one configuration; sim/verilated/append_path.py calls
// it.

#include "Vkvtq_append_path.h"
#include "shim.h"

namespace {

// Runs the append path with the tables, on streams that Python has filled.
class Simulation {
public:
    explicit Simulation(const char* waves) : clocked_{waves} {}

    void run(kvtq::AppendPathCall& call) {
        auto& m = clocked_.model();
        kvtq::Stalls stalls{call.seed};
        kvtq::Together streams{
            kvtq::Input STREAM(call, task),     kvtq::Input STREAM(call, vectors),
            kvtq::Input STREAM(call, leaving),  kvtq::Output STREAM(call, records),
            kvtq::Output STREAM(call, written),
        };
        call.cycles = clocked_.run(call.cycle_limit, 200, [&](uint64_t now) {
            streams.offer(stalls);
            m.eval();
            streams.sample(now);
            const uint32_t word = m.PORT(factors, word) % call.matrix_words;
            const uint32_t row = m.PORT(factors, row) % call.head_dim;
            const uint32_t element = m.PORT(centres, element) % call.head_dim;
            clocked_.cycle();
            kvtq::load(m.PORT(factors, factors), call.factors + word * call.factor_words);
            m.PORT(factors, shift) = call.shifts[row];
            m.PORT(centres, value) = call.centre[element];
            streams.step(now);
            return call.records.done >= call.records.count &&
                   call.written.done >= call.written.count;
        });
        streams.rest();
    }

private:
    kvtq::Clocked<Vkvtq_append_path> clocked_;
};

}  // namespace

KVTQ_DESIGN(Simulation, kvtq::AppendPathCall)

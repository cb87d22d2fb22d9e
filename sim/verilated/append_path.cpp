// A small C interface around the verilated append path: whole runs of tasks without returning to
// Python. It also plays the tables of one head: answers come a cycle after the address.
//
// Compiled together with Verilator's model of one configuration; sim/verilated/append_path.py calls
// it.

#include <cstdint>

#include "Vkvtq_append_path.h"
#include "shim.h"

extern "C" {

// Payloads of one stream, and the cycles in which they were transferred.
struct Stream {
    uint32_t* payloads;  // of `words` words each
    uint32_t words;
    uint32_t stall;      // probability that it waits in a cycle, in 1/256
    uint64_t count;      // payloads to send, or room for payloads received
    uint64_t done;       // payloads transferred, those without room counted
    uint64_t* cycles;    // of each payload
};

struct Run {
    Stream task, vectors, leaving;  // inputs
    Stream records, written;        // outputs
    const uint32_t* factors;        // words of the feedback matrix, `factor_words` words each
    uint32_t factor_words;
    uint32_t matrix_words;          // of them
    const uint32_t* shifts;         // [D]
    const uint32_t* centre;         // [D], 16 bits
    uint32_t head_dim;
    uint64_t seed;
    uint64_t cycle_limit;
    uint64_t cycles;                // result: clock cycles of this run
};
}

namespace {

using kvtq::Stalls;

// Sends one stream: a payload is held until it is taken.
template <typename Port>
void offer(const Stream& stream, Port& payload, CData& valid, Stalls& stalls) {
    if (!valid && stream.done < stream.count && !stalls.wait(stream.stall)) {
        kvtq::load(payload, stream.payloads + stream.done * stream.words);
        valid = 1;
    }
}

void taken(Stream& stream, CData& valid, bool transferred, uint64_t cycle) {
    if (transferred) {
        stream.cycles[stream.done++] = cycle;
        valid = 0;
    }
}

template <typename Port>
void receive(Stream& stream, const Port& payload, bool transferred, uint64_t cycle) {
    if (!transferred) return;
    if (stream.done < stream.count) {
        kvtq::store(payload, stream.payloads + stream.done * stream.words);
        stream.cycles[stream.done] = cycle;
    }
    ++stream.done;
}

using Simulation = kvtq::Clocked<Vkvtq_append_path>;

void run_tasks(Simulation& simulation, Run& run) {
    auto& m = simulation.model();
    Stalls stalls{run.seed};
    run.cycles = simulation.run(run.cycle_limit, 200, [&](uint64_t now) {
        offer(run.task, m.PORT(task, payload), m.PORT(task, valid), stalls);
        offer(run.vectors, m.PORT(vectors, payload), m.PORT(vectors, valid), stalls);
        offer(run.leaving, m.PORT(leaving, payload), m.PORT(leaving, valid), stalls);
        m.PORT(records, ready) = !stalls.wait(run.records.stall);
        m.PORT(written, ready) = !stalls.wait(run.written.stall);
        m.eval();
        const bool task = m.PORT(task, valid) && m.PORT(task, ready);
        const bool vectors = m.PORT(vectors, valid) && m.PORT(vectors, ready);
        const bool leaving = m.PORT(leaving, valid) && m.PORT(leaving, ready);
        receive(run.records, m.PORT(records, payload),
                m.PORT(records, valid) && m.PORT(records, ready), now);
        receive(run.written, m.PORT(written, payload),
                m.PORT(written, valid) && m.PORT(written, ready), now);
        const uint32_t word = m.PORT(factors, word) % run.matrix_words;
        const uint32_t row = m.PORT(factors, row) % run.head_dim;
        const uint32_t element = m.PORT(centres, element) % run.head_dim;
        simulation.cycle();
        kvtq::load(m.PORT(factors, factors), run.factors + word * run.factor_words);
        m.PORT(factors, shift) = run.shifts[row];
        m.PORT(centres, value) = run.centre[element];
        taken(run.task, m.PORT(task, valid), task, now);
        taken(run.vectors, m.PORT(vectors, valid), vectors, now);
        taken(run.leaving, m.PORT(leaving, valid), leaving, now);
        return run.records.done >= run.records.count && run.written.done >= run.written.count;
    });
    m.PORT(task, valid) = m.PORT(vectors, valid) = m.PORT(leaving, valid) = 0;
    m.PORT(records, ready) = m.PORT(written, ready) = 0;
}

}  // namespace

extern "C" {

// Create a simulation, reset.
void* kvtq_open() { return new Simulation{}; }
void kvtq_run(void* simulation, Run* run) {
    run_tasks(*static_cast<Simulation*>(simulation), *run);
}
void kvtq_close(void* simulation) { delete static_cast<Simulation*>(simulation); }
}

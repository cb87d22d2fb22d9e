// A small C interface around the verilated engine: whole jobs run without returning to Python.
//
// Compiled together with Verilator's model of one configuration; sim/verilated/engine.py calls it.

#include <cstdint>

#include "Vkvtq_engine.h"
#include "shim.h"

using kvtq::load;
using kvtq::Stalls;
using kvtq::store;

extern "C" {

// One stream's payloads: segments that follow each other.
struct Segment {
    const uint32_t* words;
    uint64_t count;
};

struct Run {
    const Segment* job;
    const Segment* value_exponent;
    const Segment* query;
    const Segment* keys;
    const Segment* values;
    uint64_t segments;         // of each input stream: one a job
    uint32_t words[6];         // words a payload: job, value_exponent, query, keys, values, output
    uint32_t* output;          // room for output_count payloads
    uint64_t output_count;     // payloads that the jobs owe
    uint64_t cycle_limit;
    uint32_t stall[6];         // probabilities in 1/256, of the same streams
    uint64_t seed;
    // results
    uint64_t cycles;           // clock cycles of this run
    uint64_t received;         // output payloads
    uint64_t unsent;           // input payloads that were not taken
    uint32_t counters[6];      // the engine's counters after the run
};
}

namespace {

// Source of one input stream: holds a payload until it is taken.
template <typename Port>
class Source {
public:
    Source(const Segment* segments, uint64_t count, uint32_t words, uint32_t stall)
        : segment_{segments}, end_{segments + count}, words_{words}, stall_{stall} {
        skip_empty();
    }
    void offer(Port& payload, CData& valid, Stalls& stalls) {
        if (!offered_ && segment_ != end_ && !stalls.wait(stall_)) {
            load(payload, segment_->words + index_ * words_);
            offered_ = true;
        }
        valid = offered_;
    }
    void taken() {
        offered_ = false;
        ++index_;
        skip_empty();
    }
    uint64_t left() const {
        uint64_t sum = 0;
        for (const Segment* s = segment_; s != end_; ++s) sum += s->count;
        return sum - (segment_ != end_ ? index_ : 0);
    }

private:
    void skip_empty() {
        while (segment_ != end_ && index_ == segment_->count) {
            ++segment_;
            index_ = 0;
        }
    }
    const Segment* segment_;
    const Segment* end_;
    uint32_t words_;
    uint32_t stall_;
    uint64_t index_ = 0;
    bool offered_ = false;
};

using Simulation = kvtq::Clocked<Vkvtq_engine>;

void run_jobs(Simulation& simulation, Run& run) {
    auto& m = simulation.model();
    Stalls stalls{run.seed};
    Source<decltype(m.PORT(job, payload))> job{run.job, run.segments, run.words[0], run.stall[0]};
    Source<decltype(m.PORT(value_exponent, payload))> exponent{run.value_exponent, run.segments,
                                                               run.words[1], run.stall[1]};
    Source<decltype(m.PORT(query, payload))> query{run.query, run.segments, run.words[2],
                                                   run.stall[2]};
    Source<decltype(m.PORT(keys, payload))> keys{run.keys, run.segments, run.words[3],
                                                 run.stall[3]};
    Source<decltype(m.PORT(values, payload))> values{run.values, run.segments, run.words[4],
                                                     run.stall[4]};
    run.received = 0;
    run.cycles = simulation.run(run.cycle_limit, 64, [&](uint64_t) {
        job.offer(m.PORT(job, payload), m.PORT(job, valid), stalls);
        exponent.offer(m.PORT(value_exponent, payload), m.PORT(value_exponent, valid), stalls);
        query.offer(m.PORT(query, payload), m.PORT(query, valid), stalls);
        keys.offer(m.PORT(keys, payload), m.PORT(keys, valid), stalls);
        values.offer(m.PORT(values, payload), m.PORT(values, valid), stalls);
        m.PORT(output, ready) = !stalls.wait(run.stall[5]);
        m.eval();
        const bool job_taken = m.PORT(job, valid) && m.PORT(job, ready);
        const bool exponent_taken = m.PORT(value_exponent, valid) && m.PORT(value_exponent, ready);
        const bool query_taken = m.PORT(query, valid) && m.PORT(query, ready);
        const bool key_taken = m.PORT(keys, valid) && m.PORT(keys, ready);
        const bool value_taken = m.PORT(values, valid) && m.PORT(values, ready);
        if (m.PORT(output, valid) && m.PORT(output, ready)) {
            if (run.received < run.output_count)
                store(m.PORT(output, payload), run.output + run.received * run.words[5]);
            ++run.received;
        }
        simulation.cycle();
        if (job_taken) job.taken();
        if (exponent_taken) exponent.taken();
        if (query_taken) query.taken();
        if (key_taken) keys.taken();
        if (value_taken) values.taken();
        return run.received >= run.output_count;
    });
    m.PORT(value_exponent, valid) = 0;
    m.PORT(job, valid) = m.PORT(query, valid) = m.PORT(keys, valid) = m.PORT(values, valid) = 0;
    m.PORT(output, ready) = 0;
    run.unsent = job.left() + exponent.left() + query.left() + keys.left() + values.left();
    store(m.counters, run.counters);
}

}  // namespace

extern "C" {

// Create a simulation, reset; waves are written to the file unless it is null.
void* kvtq_open(const char* waves) { return new Simulation{waves}; }
void kvtq_run(void* simulation, Run* run) {
    run_jobs(*static_cast<Simulation*>(simulation), *run);
}
void kvtq_close(void* simulation) { delete static_cast<Simulation*>(simulation); }
}

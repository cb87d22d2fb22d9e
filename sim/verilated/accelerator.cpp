// A small C interface around the verilated accelerator: memory, registers and streams in one loop.
//
// Compiled together with Verilator's model of one configuration; sim/verilated/accelerator.py
// calls it.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>

#include "Vkvtq_accelerator.h"
#include "shim.h"

extern "C" {

// The memory behind AXI, and how fast it is.
struct Memory {
    uint8_t* bytes;             // at addresses base .. base + size - 1
    uint64_t base;
    uint64_t size;
    uint32_t latency;           // cycles from an address to its first word, or to the response
    uint32_t words_in_256;      // words that may move in 256 cycles, reads and writes together
    uint32_t refresh_interval;  // cycles from refresh to refresh; 0: none
    uint32_t refresh_cycles;    // cycles of a refresh, in which nothing moves
    uint32_t outstanding;       // bursts that it takes ahead
};

// One access to a register, in the order of the program.
struct Access {
    uint32_t kind;     // 0: write data; 1: read into data; 2: read until (word & mask) == data;
                       // 3: read until (word & mask) != data
    uint32_t address;
    uint32_t data;
    uint32_t mask;
};

struct Packets {
    const uint32_t* words;
    const uint8_t* last;        // of each beat
    uint64_t beats;
};

struct Run {
    Access* accesses;
    uint64_t access_count;
    Packets key_value;
    Packets query;
    Packets table;
    uint32_t* output;           // room for output_beats beats
    uint8_t* output_last;
    int8_t* output_user;
    uint64_t output_beats;      // beats that the jobs owe
    uint64_t cycle_limit;
    // results
    uint64_t cycles;
    uint64_t received;
    uint64_t unsent;            // beats that were not taken, and accesses that were not done
};
}

namespace {

using Model = Vkvtq_accelerator;

class MemoryModel {
public:
    MemoryModel(Model& model, uint32_t word_bytes) : m_{model}, word_bytes_{word_bytes} {}
    void configure(const Memory& memory) { memory_ = memory; }

    // Before the clock edge: what the memory shows in this cycle.
    void show() {
        const uint64_t now = cycle_;
        if (memory_.refresh_interval && now % memory_.refresh_interval < memory_.refresh_cycles) {
            may_move_ = false;
        } else {
            budget_ = std::min<uint32_t>(budget_ + memory_.words_in_256, 512);
            may_move_ = budget_ >= 256;
        }
        m_.m_axi_arready = reads_.size() < memory_.outstanding;
        m_.m_axi_awready = writes_.size() < memory_.outstanding;
        const bool read_ready = !reads_.empty() && reads_.front().due <= now;
        if (!offering_ && read_ready && may_move_ && !(writes_wait() && write_turn_)) {
            budget_ -= 256;
            may_move_ = false;
            offering_ = true;
        }
        m_.m_axi_rvalid = offering_;
        if (offering_) {
            const Burst& burst = reads_.front();
            static_assert(sizeof(word_) >= 128);
            std::memset(word_, 0, sizeof(word_));
            const bool inside = fits(burst.address);
            if (inside) std::memcpy(word_, at(burst.address), word_bytes_);
            kvtq::load(m_.m_axi_rdata, word_);
            m_.m_axi_rresp = inside ? 0 : 3;
            m_.m_axi_rid = 0;
            m_.m_axi_rlast = burst.words == 1;
        }
        taking_ = !writes_.empty() && may_move_;
        m_.m_axi_wready = taking_;
        m_.m_axi_bvalid = !responses_.empty() && responses_.front().due <= now;
        m_.m_axi_bid = 0;
        m_.m_axi_bresp = responses_.empty() || responses_.front().inside ? 0 : 3;
    }

    // At the clock edge: what moves.
    void step() {
        const uint64_t now = cycle_++;
        if (m_.m_axi_arvalid && m_.m_axi_arready)
            reads_.push_back({aligned(m_.m_axi_araddr), m_.m_axi_arlen + 1u, now + memory_.latency,
                              true});
        if (m_.m_axi_rvalid && m_.m_axi_rready) {
            offering_ = false;
            write_turn_ = true;
            Burst& burst = reads_.front();
            burst.address += word_bytes_;
            if (--burst.words == 0) reads_.pop_front();
        }
        if (m_.m_axi_bvalid && m_.m_axi_bready) responses_.pop_front();
        if (m_.m_axi_wvalid && m_.m_axi_wready) {
            budget_ -= 256;
            write_turn_ = false;
            Burst& burst = writes_.front();
            burst.inside = burst.inside && fits(burst.address);
            if (burst.inside) {
                kvtq::store(m_.m_axi_wdata, word_);
                uint32_t strobes[4] = {};
                kvtq::store(m_.m_axi_wstrb, strobes);
                const auto* bytes = reinterpret_cast<const uint8_t*>(word_);
                for (uint32_t i = 0; i < word_bytes_; ++i)
                    if (strobes[i / 32] >> i % 32 & 1) at(burst.address)[i] = bytes[i];
            }
            burst.address += word_bytes_;
            if (--burst.words == 0) {
                responses_.push_back({0, 0, now + memory_.latency, burst.inside});
                writes_.pop_front();
            }
        }
        if (m_.m_axi_awvalid && m_.m_axi_awready)
            writes_.push_back({aligned(m_.m_axi_awaddr), m_.m_axi_awlen + 1u, 0, true});
    }

private:
    struct Burst {
        uint64_t address;
        uint32_t words;
        uint64_t due;
        bool inside;
    };
    bool writes_wait() const { return !writes_.empty() && m_.m_axi_wvalid; }
    uint64_t aligned(uint64_t address) const { return address / word_bytes_ * word_bytes_; }
    bool fits(uint64_t address) const {
        return address >= memory_.base && address + word_bytes_ <= memory_.base + memory_.size;
    }
    uint8_t* at(uint64_t address) const { return memory_.bytes + (address - memory_.base); }

    Model& m_;
    uint32_t word_bytes_;
    Memory memory_{};
    uint64_t cycle_ = 0;
    uint32_t budget_ = 0;
    bool may_move_ = false;
    bool offering_ = false;
    bool taking_ = false;
    bool write_turn_ = false;
    uint32_t word_[32] = {};
    std::deque<Burst> reads_, writes_, responses_;
};

// The program of register accesses, one after the other.
class Program {
public:
    Program(Model& model, Access* accesses, uint64_t count)
        : m_{model}, next_{accesses}, end_{accesses + count} {}
    bool done() const { return next_ == end_; }
    uint64_t left() const { return end_ - next_; }
    void show() {
        const bool writes = !done() && next_->kind == 0;
        const bool reads = !done() && next_->kind != 0;
        m_.s_axil_awvalid = writes && !address_taken_;
        m_.s_axil_wvalid = writes && !data_taken_;
        m_.s_axil_arvalid = reads && !address_taken_;
        m_.s_axil_bready = m_.s_axil_rready = 1;
        if (done()) return;
        m_.s_axil_awaddr = m_.s_axil_araddr = next_->address;
        m_.s_axil_awprot = m_.s_axil_arprot = 0;
        m_.s_axil_wdata = next_->data;
        m_.s_axil_wstrb = 15;
    }
    void step() {
        if (done()) return;
        bool answered = false;
        if (next_->kind == 0) {
            address_taken_ |= m_.s_axil_awvalid && m_.s_axil_awready;
            data_taken_ |= m_.s_axil_wvalid && m_.s_axil_wready;
            answered = m_.s_axil_bvalid;
        } else {
            address_taken_ |= m_.s_axil_arvalid && m_.s_axil_arready;
            answered = m_.s_axil_rvalid;
        }
        if (!answered) return;
        address_taken_ = data_taken_ = false;
        const bool equal = (m_.s_axil_rdata & next_->mask) == next_->data;
        if ((next_->kind == 2 && !equal) || (next_->kind == 3 && equal)) return;
        if (next_->kind == 1) next_->data = m_.s_axil_rdata;
        ++next_;
    }

private:
    Model& m_;
    Access* next_;
    Access* end_;
    bool address_taken_ = false;
    bool data_taken_ = false;
};

// Source of one stream: `words` 32-bit words a beat.
class Source {
public:
    Source(const Packets& packets, uint32_t words) : packets_{packets}, words_{words} {}
    template <typename Data>
    void show(CData& valid, CData& last, Data& data) const {
        valid = sent_ < packets_.beats;
        if (!valid) return;
        kvtq::load(data, packets_.words + sent_ * words_);
        last = packets_.last[sent_];
    }
    void step(bool valid, bool ready) { sent_ += valid && ready; }
    uint64_t left() const { return packets_.beats - sent_; }

private:
    const Packets& packets_;
    uint32_t words_;
    uint64_t sent_ = 0;
};

template <typename Port>
constexpr uint32_t words_of() {
    return (sizeof(Port) + 3) / 4;
}

// The accelerator and the memory behind it.
class Simulation {
public:
    Simulation(const char* waves, uint32_t word_bytes)
        : clocked_{waves}, memory_{clocked_.model(), word_bytes} {}

    void run(const Memory& memory, Run& run) {
        Model& m = clocked_.model();
        memory_.configure(memory);
        Program program{m, run.accesses, run.access_count};
        Source pairs{run.key_value, words_of<decltype(m.s_axis_key_value_tdata)>()};
        Source queries{run.query, words_of<decltype(m.s_axis_query_tdata)>()};
        Source tables{run.table, words_of<decltype(m.s_axis_table_tdata)>()};
        constexpr uint32_t kOutputWords = words_of<decltype(m.m_axis_output_tdata)>();
        run.received = 0;
        run.cycles = clocked_.run(run.cycle_limit, 64, [&](uint64_t) {
            memory_.show();
            program.show();
            pairs.show(m.s_axis_key_value_tvalid, m.s_axis_key_value_tlast, m.s_axis_key_value_tdata);
            queries.show(m.s_axis_query_tvalid, m.s_axis_query_tlast, m.s_axis_query_tdata);
            tables.show(m.s_axis_table_tvalid, m.s_axis_table_tlast, m.s_axis_table_tdata);
            m.m_axis_output_tready = 1;
            m.eval();
            if (m.m_axis_output_tvalid) {
                if (run.received < run.output_beats) {
                    kvtq::store(m.m_axis_output_tdata, run.output + run.received * kOutputWords);
                    run.output_last[run.received] = m.m_axis_output_tlast;
                    run.output_user[run.received] = static_cast<int8_t>(m.m_axis_output_tuser);
                }
                ++run.received;
            }
            memory_.step();
            program.step();
            pairs.step(m.s_axis_key_value_tvalid, m.s_axis_key_value_tready);
            queries.step(m.s_axis_query_tvalid, m.s_axis_query_tready);
            tables.step(m.s_axis_table_tvalid, m.s_axis_table_tready);
            clocked_.cycle();
            run.unsent = pairs.left() + queries.left() + tables.left() + program.left();
            return run.unsent == 0 && run.received >= run.output_beats;
        });
    }

private:
    kvtq::Clocked<Model> clocked_;
    MemoryModel memory_;
};

}  // namespace

extern "C" {

// Create a simulation, reset; waves are written to the file unless it is null.
void* kvtq_open(const char* waves, uint32_t word_bytes) { return new Simulation{waves, word_bytes}; }
void kvtq_run(void* simulation, const Memory* memory, Run* run) {
    static_cast<Simulation*>(simulation)->run(*memory, *run);
}
void kvtq_close(void* simulation) { delete static_cast<Simulation*>(simulation); }
}

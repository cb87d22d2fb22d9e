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

namespace {

using Model = Vkvtq_accelerator;

// Bytes per memory word: Verilator stores the data port in exactly as many bytes.
constexpr uint32_t kWordBytes = sizeof(std::remove_reference_t<decltype(Model::m_axi_rdata)>);

class MemoryModel {
public:
    explicit MemoryModel(Model& model) : m_{model} {}
    void configure(const kvtq::Memory& memory) { memory_ = memory; }

    // Drive the memory's outputs for this cycle, before the clock edge.
    void show() {
        const uint64_t now = cycle_;
        if (memory_.refresh_interval && now % memory_.refresh_interval < memory_.refresh_cycles) {
            may_move_ = false;
        } else {
            budget_ = std::min<uint32_t>(budget_ + memory_.words_per_cycle, 2 * kvtq::UNIT);
            may_move_ = budget_ >= kvtq::UNIT;
        }
        m_.m_axi_arready = reads_.size() < memory_.outstanding;
        m_.m_axi_awready = writes_.size() < memory_.outstanding;
        const bool read_ready = !reads_.empty() && reads_.front().due <= now;
        if (!offering_ && read_ready && may_move_ && !(writes_wait() && write_turn_)) {
            budget_ -= kvtq::UNIT;
            may_move_ = false;
            offering_ = true;
        }
        m_.m_axi_rvalid = offering_;
        if (offering_) {
            const Burst& burst = reads_.front();
            static_assert(sizeof(word_) >= 128);
            std::memset(word_, 0, sizeof(word_));
            const bool inside = fits(burst.address);
            if (inside) std::memcpy(word_, at(burst.address), kWordBytes);
            kvtq::load(m_.m_axi_rdata, word_);
            m_.m_axi_rresp = inside ? kvtq::OKAY : kvtq::DECERR;
            m_.m_axi_rid = 0;
            m_.m_axi_rlast = burst.words == 1;
        }
        taking_ = !writes_.empty() && may_move_;
        m_.m_axi_wready = taking_;
        m_.m_axi_bvalid = !responses_.empty() && responses_.front().due <= now;
        m_.m_axi_bid = 0;
        const bool fine = responses_.empty() || responses_.front().inside;
        m_.m_axi_bresp = fine ? kvtq::OKAY : kvtq::DECERR;
    }

    // Complete the transfers of this cycle, at the clock edge.
    void step() {
        const uint64_t now = cycle_++;
        if (m_.m_axi_arvalid && m_.m_axi_arready)
            reads_.push_back({aligned(m_.m_axi_araddr), m_.m_axi_arlen + 1u, now + memory_.latency,
                              true});
        if (m_.m_axi_rvalid && m_.m_axi_rready) {
            offering_ = false;
            write_turn_ = true;
            Burst& burst = reads_.front();
            burst.address += kWordBytes;
            if (--burst.words == 0) reads_.pop_front();
        }
        if (m_.m_axi_bvalid && m_.m_axi_bready) responses_.pop_front();
        if (m_.m_axi_wvalid && m_.m_axi_wready) {
            budget_ -= kvtq::UNIT;
            write_turn_ = false;
            Burst& burst = writes_.front();
            burst.inside = burst.inside && fits(burst.address);
            if (burst.inside) {
                kvtq::store(m_.m_axi_wdata, word_);
                uint32_t strobes[4] = {};
                kvtq::store(m_.m_axi_wstrb, strobes);
                const auto* bytes = reinterpret_cast<const uint8_t*>(word_);
                for (uint32_t i = 0; i < kWordBytes; ++i)
                    if (strobes[i / 32] >> i % 32 & 1) at(burst.address)[i] = bytes[i];
            }
            burst.address += kWordBytes;
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
    uint64_t aligned(uint64_t address) const { return address / kWordBytes * kWordBytes; }
    bool fits(uint64_t address) const {
        return address >= memory_.base && address + kWordBytes <= memory_.base + memory_.size;
    }
    uint8_t* at(uint64_t address) const { return memory_.bytes + (address - memory_.base); }

    Model& m_;
    kvtq::Memory memory_{};
    uint64_t cycle_ = 0;
    uint32_t budget_ = 0;
    bool may_move_ = false;
    bool offering_ = false;
    bool taking_ = false;
    bool write_turn_ = false;
    uint32_t word_[32] = {};
    std::deque<Burst> reads_, writes_, responses_;
};

// Performs the program of register accesses one after the other.
class Program {
public:
    Program(Model& model, kvtq::Program& program) : m_{model}, program_{program} {}
    bool done() const { return program_.done == program_.count; }
    void show() {
        const bool writes = !done() && next().kind == kvtq::WRITE;
        const bool reads = !done() && next().kind != kvtq::WRITE;
        m_.s_axil_awvalid = writes && !address_taken_;
        m_.s_axil_wvalid = writes && !data_taken_;
        m_.s_axil_arvalid = reads && !address_taken_;
        m_.s_axil_bready = m_.s_axil_rready = 1;
        if (done()) return;
        m_.s_axil_awaddr = m_.s_axil_araddr = next().address;
        m_.s_axil_awprot = m_.s_axil_arprot = 0;
        m_.s_axil_wdata = next().data;
        m_.s_axil_wstrb = 15;
    }
    void step() {
        if (done()) return;
        bool answered = false;
        kvtq::Access& access = next();
        if (access.kind == kvtq::WRITE) {
            address_taken_ |= m_.s_axil_awvalid && m_.s_axil_awready;
            data_taken_ |= m_.s_axil_wvalid && m_.s_axil_wready;
            answered = m_.s_axil_bvalid;
        } else {
            address_taken_ |= m_.s_axil_arvalid && m_.s_axil_arready;
            answered = m_.s_axil_rvalid;
        }
        if (!answered) return;
        address_taken_ = data_taken_ = false;
        const bool equal = (m_.s_axil_rdata & access.mask) == access.data;
        if (access.kind == kvtq::AWAIT && !equal) return;
        if (access.kind == kvtq::AWAIT_OTHER && equal) return;
        if (access.kind == kvtq::READ) access.data = m_.s_axil_rdata;
        ++program_.done;
    }

private:
    kvtq::Access& next() const { return program_.accesses[program_.done]; }

    Model& m_;
    kvtq::Program& program_;
    bool address_taken_ = false;
    bool data_taken_ = false;
};

template <typename Port>
constexpr uint64_t words_of(const Port&) {
    return (sizeof(Port) + 3) / 4;
}

// Sends packets into the accelerator without stalls.
template <typename Data>
class Source {
public:
    Source(kvtq::Packets& packets, Data& data, CData& last, CData& valid, const CData& ready)
        : packets_{packets}, data_{data}, last_{last}, valid_{valid}, ready_{ready} {}
    bool done() const { return packets_.done == packets_.count; }
    void show() {
        valid_ = !done();
        if (!valid_) return;
        kvtq::load(data_, packets_.words + packets_.done * words_of(data_));
        last_ = packets_.last[packets_.done];
    }
    void step() { packets_.done += valid_ && ready_; }

private:
    kvtq::Packets& packets_;
    Data& data_;
    CData& last_;
    CData& valid_;
    const CData& ready_;
};

// The accelerator and the memory behind it.
class Simulation {
public:
    explicit Simulation(const char* waves) : clocked_{waves}, memory_{clocked_.model()} {}

    void run(kvtq::AcceleratorCall& call) {
        Model& m = clocked_.model();
        memory_.configure(call.memory);
        Program program{m, call.registers};
        Source pairs{call.key_value, m.s_axis_key_value_tdata, m.s_axis_key_value_tlast,
                     m.s_axis_key_value_tvalid, m.s_axis_key_value_tready};
        Source queries{call.query, m.s_axis_query_tdata, m.s_axis_query_tlast,
                       m.s_axis_query_tvalid, m.s_axis_query_tready};
        Source tables{call.table, m.s_axis_table_tdata, m.s_axis_table_tlast,
                      m.s_axis_table_tvalid, m.s_axis_table_tready};
        call.cycles = clocked_.run(call.cycle_limit, 64, [&](uint64_t) {
            memory_.show();
            program.show();
            pairs.show();
            queries.show();
            tables.show();
            m.m_axis_output_tready = 1;
            // no output sees an input of the same cycle, so the outputs are as the last cycle left
            // them, and the inputs are evaluated with the clock
            if (m.m_axis_output_tvalid) receive(m, call.output);
            memory_.step();
            program.step();
            pairs.step();
            queries.step();
            tables.step();
            clocked_.cycle();
            return program.done() && pairs.done() && queries.done() && tables.done() &&
                   call.output.done >= call.output.count;
        });
    }

private:
    static void receive(const Model& m, kvtq::Packets& output) {
        const uint64_t beat = output.done++;
        if (beat >= output.count) return;
        const auto& data = m.m_axis_output_tdata;
        kvtq::store(data, output.words + beat * words_of(data));
        output.last[beat] = m.m_axis_output_tlast;
        output.user[beat] = static_cast<int8_t>(m.m_axis_output_tuser);
    }

    kvtq::Clocked<Model> clocked_;
    MemoryModel memory_;
};

}  // namespace

KVTQ_DESIGN(Simulation, kvtq::AcceleratorCall)

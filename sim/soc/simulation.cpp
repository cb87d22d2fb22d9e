// Runs the system: clock, reset, and a console. Usage: PROGRAM CYCLES
//
// Ends with the program's exit status, or with 3 after so many cycles.

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "Vkvtq_soc.h"
#include "verilated.h"

int main(int argc, char** argv) {
    if (argc != 2) return 64;
    const uint64_t limit = std::strtoull(argv[1], nullptr, 10);
    VerilatedContext context;
    Vkvtq_soc system{&context};
    system.serial_source_ready = 1;
    system.serial_sink_valid = 0;
    constexpr uint64_t kReset = 40;  // longer than any path of registers without a reset
    for (uint64_t cycle = 0; cycle < limit; ++cycle) {
        system.rst = cycle < kReset;
        system.clk = 1;
        system.eval();
        system.clk = 0;
        system.eval();
        if (cycle < kReset) continue;
        if (system.serial_source_valid) std::putchar(system.serial_source_data);
        if (system.exit_valid) {
            std::printf("cycles of the simulation: %llu\n", static_cast<unsigned long long>(cycle));
            return system.exit_code;
        }
    }
    std::printf("FAIL: no end after %llu cycles\n", static_cast<unsigned long long>(limit));
    return 3;
}

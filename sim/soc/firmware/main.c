/* Sends a recorded decode to the accelerator and compares what comes back with golden's bits.
 *
 * Ends with status 0 if all outputs are equal, 1 if one differs, 2 if something failed. */
#include "decode.h"
#include "platform.h"

/* Cycles that a batch may take, and reads of a register while the driver waits. */
#define BATCH_CYCLES 100000u
#define POLLS 1000u

static struct kvtq_device device = {.bus = KVTQ_MMIO(ACCELERATOR_BASE), .polls = POLLS};

/* Totals over all batches. */
static struct {
    uint32_t jobs, cycles, slept; /* from the first register write of a batch to its end */
    uint32_t compared, different;
} total;

static const char *const names[] = {
    "OK",    "IDENTITY", "VERSION",   "TIMEOUT", "QUEUE_FULL", "CODE",
    "TOKENS", "RANGE",   "ALIGNMENT", "MEMORY",  "JOB",        "OVERRUN",
};

/* Go on if a function of the driver says so. */
static void check(const char *what, enum kvtq_result result) {
    if (result == KVTQ_OK) return;
    print("FAIL: ");
    print(what);
    print(": KVTQ_ERROR_");
    print(names[result]);
    print("\n");
    stop(2);
}

/* Interrupts of the accelerator. */
static volatile uint32_t interrupts;

/* A job has ended, well or not. */
static void handle(void) {
    kvtq_interrupt_clear(&device, KVTQ_INTERRUPT_DONE_MASK);
    ++interrupts;
}

static void load_tables(void) {
    for (uint32_t packet = 0; packet < decode_packet_count; ++packet) {
        dma_start(DMA_TABLE, decode_packets[packet].words, decode_packets[packet].count);
        /* s_axis_table takes a word per cycle: what waits in the DMA is gone before a job starts */
        if (!dma_wait(DMA_TABLE)) check("tables", KVTQ_ERROR_TIMEOUT);
    }
}

/* Sleep until all started jobs have ended. */
static enum kvtq_result wait(void) {
    timer_start(BATCH_CYCLES);
    while (!kvtq_idle(&device) && !timer_late()) total.slept += interrupt_sleep();
    return kvtq_wait(&device);
}

/* Run the jobs of a batch. */
static void run(const struct decode_batch *batch) {
    const uint32_t begin = cycles(), before = interrupts;
    dma_start(DMA_OUTPUT, decode_received, batch->output_words);
    dma_start(DMA_KEY_VALUE, batch->key_value, batch->key_value_words);
    dma_start(DMA_QUERY, batch->query, batch->query_words);
    for (uint32_t number = 0; number < batch->count; ++number) {
        const struct decode_job *const job = &batch->jobs[number];
        struct kvtq_job words;
        check("describe", kvtq_describe(&device, &decode_heads[job->head], &job->step, &words));
        check("start", kvtq_start(&device, &words));
    }
    check("wait", wait());
    struct kvtq_failure failure;
    check("status", kvtq_status(&device, &failure));
    if (!dma_wait(DMA_OUTPUT)) check("outputs", KVTQ_ERROR_TIMEOUT);
    cache_flush();
    if (interrupts == before) check("interrupt", KVTQ_ERROR_TIMEOUT);
    total.cycles += cycles() - begin;
    total.jobs += batch->count;
}

/* Compare the outputs of a batch with golden's; name the first that differs. */
static void compare(uint32_t number, const struct decode_batch *batch) {
    for (uint32_t word = 0; word < batch->output_words; ++word) {
        const uint32_t found = *(volatile uint32_t *)&decode_received[word];
        if (found == batch->outputs[word]) continue;
        if (total.different++ == 0) {
            print("first difference: batch ");
            print_number(number);
            print(", word ");
            print_number(word);
            print(": 0x");
            print_hex(found);
            print(", golden 0x");
            print_hex(batch->outputs[word]);
            print("\n");
        }
    }
    total.compared += batch->output_words;
}

static void line(const char *what, uint32_t number) {
    print(what);
    print_number(number);
    print("\n");
}

static void report(void) {
    const uint32_t heads = device.query_group; /* and a word with the exponent */
    line("jobs: ", total.jobs);
    line("outputs compared with golden: ", total.compared / (heads + 1u) * heads);
    line("exponents compared with golden: ", total.compared / (heads + 1u));
    line("different: ", total.different);
    line("interrupts: ", interrupts);
    line("cycles: ", total.cycles);
    print("cycles per job\n");
    line("  from the first register write to the outputs in memory: ", total.cycles / total.jobs);
    line("  firmware, awake: ", (total.cycles - total.slept) / total.jobs);
    line("  accelerator, attention: ", kvtq_counter(&device, KVTQ_BUSY_CYCLES) / total.jobs);
    line("  accelerator, append: ", kvtq_counter(&device, KVTQ_APPEND_CYCLES) / total.jobs);
}

int main(void) {
    check("open", kvtq_open(&device));
    struct kvtq_memory memory = {(uintptr_t)decode_memory,
                                 (uintptr_t)decode_memory + decode_memory_bytes};
    for (uint32_t head = 0; head < decode_head_count; ++head)
        check("place", kvtq_place_head(&device, &decode_format, decode_tokens, &memory,
                                       &decode_heads[head]));
    load_tables();
    interrupts_start(handle);
    kvtq_interrupt_enable(&device, KVTQ_INTERRUPT_DONE_MASK);
    for (uint32_t number = 0; number < decode_batch_count; ++number) {
        run(&decode_batches[number]);
        compare(number, &decode_batches[number]);
    }
    report();
    print(total.different ? "FAIL\n" : "PASS\n");
    stop(total.different != 0);
}

/* Driver of the kvtq-hw accelerator: freestanding C11, no allocation, no library.
 *
 * One KV head of one layer is a `struct kvtq_head`. A decode step is one job per head:
 *
 *     struct kvtq_device device = {.bus = KVTQ_MMIO(0x40000000u), .polls = 1000000u};
 *     kvtq_open(&device);
 *     kvtq_place_head(&device, &format, context, &memory, &head);        once per head
 *     ... the platform sends the head's tables ...
 *     kvtq_describe(&device, &head, &step, &job);                         then per token and head:
 *     ... the platform offers the job's vectors, and room for its outputs ...
 *     kvtq_start(&device, &job);
 *     kvtq_wait(&device);
 *     kvtq_status(&device, &failure);
 *
 * Vectors, tables and outputs are AXI streams, which the platform moves (by DMA, say). They may be
 * offered before a job is started, and must come in the order in which jobs are started:
 *
 *   - per job that appends: one packet of head_dim beats on s_axis_key_value; beat d has element d
 *     of the key in bits 15:0 and of the value in bits 31:16, both in two's complement;
 *   - per job that attends: one packet of head_dim beats on s_axis_query; beat d has element d of
 *     every query, 16 bits each, query head 0 lowest;
 *   - per job that attends: one packet of head_dim beats comes out of m_axis_output; beat d has
 *     element d of every output, 32 bits each, query head 0 lowest; TUSER is the signed exponent e
 *     of all of them, the true output is element * 2**e;
 *   - before the first job of a head: its tables, packets of 32-bit words on s_axis_table, each
 *     behind a word of kvtq_table_header. The host that calibrates makes their words
 *     (golden/tables.py, docs/contract.md "Tables"); a firmware passes them on.
 *
 * A job that is refused (NO_TOKENS, TOO_MANY_TOKENS, BAD_CODE) takes its vectors and gives no
 * outputs. A memory error ends all jobs that are under way: they take their vectors, and give all
 * of their outputs or none. A KV head with a failed job is lost (docs/contract.md, "Memory").
 */
#ifndef KVTQ_DRIVER_H
#define KVTQ_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "kvtq_registers.h"

/* What a function of the driver says. */
enum kvtq_result {
    KVTQ_OK = 0,
    KVTQ_ERROR_IDENTITY,   /* another device answers, or none */
    KVTQ_ERROR_VERSION,    /* the register map is not of a version that this driver knows */
    KVTQ_ERROR_TIMEOUT,    /* jobs do not end: reset the accelerator, then kvtq_forget */
    KVTQ_ERROR_QUEUE_FULL, /* the queue has no room: nothing was started */
    KVTQ_ERROR_CODE,       /* a code that the hardware does not compute */
    KVTQ_ERROR_TOKENS,     /* no token, or more than the hardware's longest context */
    KVTQ_ERROR_RANGE,      /* a number of a step or head does not fit its register */
    KVTQ_ERROR_ALIGNMENT,  /* a region would not start at a word of the memory port */
    KVTQ_ERROR_MEMORY,     /* a head's regions do not fit the memory */
    KVTQ_ERROR_JOB,        /* a job ended badly */
    KVTQ_ERROR_OVERRUN,    /* a job was lost: others than this driver start jobs */
};

/* Access to the registers: `address` is a byte address in the map, a multiple of 4. */
struct kvtq_bus {
    uint32_t (*read32)(void *context, uint32_t address);
    void (*write32)(void *context, uint32_t address, uint32_t word);
    void *context; /* passed to both */
};

/* Words from the first register of a descriptor to its last, unused addresses included. */
#define KVTQ_DESCRIPTOR_WORDS ((KVTQ_ANCHOR_THRESHOLD - KVTQ_JOB_FLAGS) / 4u + 1u)

/* An accelerator. The caller sets `bus` and `polls`; kvtq_open the rest. */
struct kvtq_device {
    struct kvtq_bus bus;
    uint32_t polls; /* most reads of a register while waiting; at least one read is made */
    uint32_t head_dim, query_group, max_planes, max_context; /* shape of the hardware */
    uint32_t started;                       /* jobs started since reset, modulo 2**32 */
    uint32_t written[KVTQ_DESCRIPTOR_WORDS]; /* the descriptor that the registers hold */
};

/* A cache code (docs/contract.md). kvtq_place_head puts it in the form that the hardware has. */
struct kvtq_code {
    uint32_t key_digits, value_digits; /* planes of a body vector, 1 to max_planes */
    uint32_t tier_digits;     /* planes in sinks and window, 1 or more; at most max_planes count */
    uint32_t sinks, window;   /* tokens */
    uint32_t sliding;         /* tokens to which a query attends; 0: all */
    uint32_t anchors;         /* most anchors, 0 to 65535; none in a layer with a sliding window */
    bool residual;            /* each plane of the body has a scale of its own */
    bool absmean;             /* the body's scales are mean magnitudes; balanced: must be true */
    bool feedback;            /* the body is rounded with feedback; balanced codes only */
};

/* Format of the records in memory: the manifest's configuration says it. */
struct kvtq_format {
    uint32_t word_bytes;      /* memory_bits / 8 */
    uint32_t digits_per_byte; /* packing: 5 for 5in8, 4 for 2bit */
    uint32_t scale_bytes;     /* scale_fraction_bits + scale_exponent_bits, in whole bytes */
};

/* Memory that heads are placed in: byte addresses next .. end - 1 are free. */
struct kvtq_memory {
    uint64_t next, end;
};

/* Records of one size, one after the other. */
struct kvtq_region {
    uint64_t base;         /* byte address of the first record */
    uint32_t record_bytes; /* bytes per record */
};

/* Where the vectors of one side (keys or values) of a head are. */
struct kvtq_vectors {
    struct kvtq_region sinks, body, window;
};

/* A KV head of a layer. The caller sets all but `key` and `value`, which kvtq_place_head sets. */
struct kvtq_head {
    struct kvtq_code code;
    uint32_t table;            /* index of its tables, 0 to 65535 */
    uint32_t anchor_threshold; /* hits from which on a leaving token becomes an anchor, 0 to 4095 */
    bool rotate, centre;       /* vectors are rotated; a centre is subtracted from keys */
    struct kvtq_vectors key, value;
};

/* What a job does: a decode step of one head. Numbers per query head of a job that attends. */
struct kvtq_step {
    uint32_t tokens;         /* of the context, the appended one and forgotten ones included */
    bool append, attend;     /* store a new token; compute attention */
    bool first;              /* forget value exponents of what the head had before */
    uint32_t value_exponent; /* least value exponent, 0 to 31: that of a memory image, else 0 */
    int8_t query_exponent[KVTQ_QUERY_EXPONENT_COUNT];
    int32_t sink_maximum[KVTQ_SINK_MAXIMUM_COUNT];  /* learned sinks, -2**21 to 2**21 - 1 */
    uint32_t sink_weight[KVTQ_SINK_WEIGHT_COUNT];   /* 0 to 2**17 - 1; 0: no learned sink */
};

/* A job's descriptor: the words of the registers from KVTQ_JOB_FLAGS on. */
struct kvtq_job {
    uint32_t words[KVTQ_DESCRIPTOR_WORDS];
};

/* The first job that ended badly. */
struct kvtq_failure {
    uint32_t job;                 /* its number since reset, modulo 2**24; the first is 0 */
    enum kvtq_job_status status;
};

/* Sections of the tables (docs/contract.md, "Tables" and "Anchor tokens"). */
enum kvtq_section {
    KVTQ_CENTRES = 0,
    KVTQ_KEY_FACTORS = 1,
    KVTQ_KEY_SHIFTS = 2,
    KVTQ_VALUE_FACTORS = 3,
    KVTQ_VALUE_SHIFTS = 4,
    KVTQ_ANCHORS_STATE = 5, /* then the number of anchors, and the hits of each window slot */
};

/* Return the first word of a packet on s_axis_table, whose words are of table `table` on. */
static inline uint32_t kvtq_table_header(enum kvtq_section section, uint32_t table) {
    return (uint32_t)section | table << 3;
}

/* Read a register in memory at `base + address`: a read32 for firmware. */
static inline uint32_t kvtq_mmio_read32(void *base, uint32_t address) {
    return *(volatile uint32_t *)((uintptr_t)base + address);
}

/* Write a register in memory at `base + address`: a write32 for firmware. The platform makes sure
 * that earlier stores to the KV memory are visible to the accelerator. */
static inline void kvtq_mmio_write32(void *base, uint32_t address, uint32_t word) {
    *(volatile uint32_t *)((uintptr_t)base + address) = word;
}

/* The bus of an accelerator whose registers are in memory from address `base` on. */
#define KVTQ_MMIO(base) {kvtq_mmio_read32, kvtq_mmio_write32, (void *)(uintptr_t)(base)}

/* Find the accelerator: check identity and version, read its shape, and kvtq_forget.
 * Errors: IDENTITY, VERSION, TIMEOUT. */
enum kvtq_result kvtq_open(struct kvtq_device *device);

/* Learn anew what the registers hold: after a reset of the accelerator, and when others have used
 * it. Waits until no job is pending. Errors: TIMEOUT. */
enum kvtq_result kvtq_forget(struct kvtq_device *device);

/* Place the regions of a head's keys and values, for contexts of up to `tokens` tokens, at
 * `memory->next`, which moves behind them; put head->code in the hardware's form. Heads placed in
 * the order layer, head lie as `kvtq-hw layout` prints them. On an error nothing changes.
 * Errors: TOKENS, CODE, RANGE, ALIGNMENT, MEMORY. */
enum kvtq_result kvtq_place_head(const struct kvtq_device *device, const struct kvtq_format *format,
                                 uint32_t tokens, struct kvtq_memory *memory,
                                 struct kvtq_head *head);

/* Describe a job of a placed head; touches no register.
 * Errors: TOKENS, RANGE. */
enum kvtq_result kvtq_describe(const struct kvtq_device *device, const struct kvtq_head *head,
                               const struct kvtq_step *step, struct kvtq_job *job);

/* Start a job as soon as the queue has room; writes only the words that differ from the job before.
 * Errors: QUEUE_FULL after `polls` reads. */
enum kvtq_result kvtq_start(struct kvtq_device *device, const struct kvtq_job *job);

/* Wait until all started jobs have ended, well or not.
 * Errors: TIMEOUT after `polls` reads. */
enum kvtq_result kvtq_wait(const struct kvtq_device *device);

/* Return whether all started jobs have ended, well or not, without waiting: for software that sleeps
 * until the accelerator interrupts. */
bool kvtq_idle(const struct kvtq_device *device);

/* Say whether a job ended badly since the error interrupt was cleared, and which was the first; or
 * whether one was lost. `failure` is written only with KVTQ_ERROR_JOB.
 * Errors: JOB, OVERRUN. */
enum kvtq_result kvtq_status(const struct kvtq_device *device, struct kvtq_failure *failure);

/* Let the events of `mask` (KVTQ_INTERRUPT_DONE_MASK, _ERROR_MASK, _OVERRUN_MASK), and no others,
 * raise the interrupt line. */
void kvtq_interrupt_enable(const struct kvtq_device *device, uint32_t mask);

/* Return which events have happened since they were cleared. */
uint32_t kvtq_interrupts(const struct kvtq_device *device);

/* Clear the events of `mask`. */
void kvtq_interrupt_clear(const struct kvtq_device *device, uint32_t mask);

/* Return a counter, named by its register (KVTQ_BUSY_CYCLES, ...): counts since reset, modulo
 * 2**32. */
uint32_t kvtq_counter(const struct kvtq_device *device, uint32_t address);

#endif

/* A recorded decode, and what golden says must come back: decode.c, which sim/soc/program.py makes. */
#ifndef DECODE_H
#define DECODE_H

#include "kvtq_driver.h"

/* A packet of words on s_axis_table. */
struct decode_packet {
    const uint32_t *words;
    uint32_t count;
};

/* A decode step of one KV head. */
struct decode_job {
    uint32_t head; /* index in decode_heads */
    struct kvtq_step step;
};

/* Jobs of one layer and one token, and their vectors and outputs one after the other. A beat of
 * outputs is a word per query head, and a word with the exponent. */
struct decode_batch {
    const struct decode_job *jobs;
    uint32_t count;
    const uint32_t *key_value, *query, *outputs;
    uint32_t key_value_words, query_words, output_words;
};

extern const struct kvtq_format decode_format;
extern const uint32_t decode_tokens; /* longest context */
extern const uint32_t decode_packet_count, decode_head_count, decode_batch_count;
extern const struct decode_packet decode_packets[];
extern struct kvtq_head decode_heads[];
extern const struct decode_batch decode_batches[];

/* The KV cache, with what a prefill stored (memory.S). */
extern uint8_t decode_memory[];
extern const uint32_t decode_memory_bytes;

/* Room for the outputs of any batch. */
extern uint32_t decode_received[];

#endif

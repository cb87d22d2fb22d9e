/* Driver of the kvtq-hw accelerator; kvtq_driver.h says how it is used. */
#include "kvtq_driver.h"

/* The bits of a register that hold `value`, which must fit its field. */
#define FIELD(name, value) (((uint32_t)(value) << name##_POSITION) & name##_MASK)
/* The value of a field in a register's word. */
#define VALUE(name, word) (((word) & name##_MASK) >> name##_POSITION)
/* The largest value of an unsigned field. */
#define MOST(name) (name##_MASK >> name##_POSITION)
/* Word of a descriptor at a register's address. */
#define WORD(address) (((address) - KVTQ_JOB_FLAGS) / 4u)

/* Runs of addresses that a descriptor's registers have; between them there is nothing. */
static const struct {
    uint16_t first, last;
} descriptor_runs[] = {
    {KVTQ_JOB_FLAGS, KVTQ_BODY_SLOT},
    {KVTQ_QUERY_EXPONENT, KVTQ_QUERY_EXPONENT + 4u * (KVTQ_QUERY_EXPONENT_COUNT - 1u)},
    {KVTQ_KEY_CONSTANT, KVTQ_KEY_CONSTANT + 4u * (KVTQ_KEY_CONSTANT_COUNT - 1u)},
    {KVTQ_VALUE_CONSTANT, KVTQ_VALUE_CONSTANT + 4u * (KVTQ_VALUE_CONSTANT_COUNT - 1u)},
    {KVTQ_KEY_SINKS, KVTQ_VALUE_WINDOW + 4u},
    {KVTQ_SINK_MAXIMUM, KVTQ_ANCHOR_THRESHOLD},
};
#define RUNS (sizeof descriptor_runs / sizeof descriptor_runs[0])

/* Scale / mean magnitude, in thousandths, by digits - 1 (golden/quantizer.py says why these). */
static const uint16_t balanced_ratios[] = {1520, 670, 268, 105, 41};
static const uint16_t key_feedback_ratios[] = {2000, 700, 280, 105, 41};
static const uint16_t value_feedback_ratios[] = {2100, 700, 280, 105, 41};
static const uint16_t residual_ratios[] = {1530, 1370, 1570, 8500, 1420}; /* by plane */
#define MOST_DIGITS 5u

static uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Return a - b, or 0 where b is larger. */
static uint32_t beyond(uint32_t a, uint32_t b) { return a > b ? a - b : 0; }

static uint32_t read(const struct kvtq_device *device, uint32_t address) {
    return device->bus.read32(device->bus.context, address);
}

static void write(const struct kvtq_device *device, uint32_t address, uint32_t word) {
    device->bus.write32(device->bus.context, address, word);
}

/* --- the device ------------------------------------------------------------------------------ */

/* Read a register until `(word & mask == value) == equal`; return whether that came in time. */
static bool await(const struct kvtq_device *device, uint32_t address, uint32_t mask, uint32_t value,
                  bool equal) {
    uint32_t polls = 0;
    do {
        if (((read(device, address) & mask) == value) == equal) return true;
    } while (++polls < device->polls);
    return false;
}

enum kvtq_result kvtq_open(struct kvtq_device *device) {
    if (read(device, KVTQ_IDENTITY) != KVTQ_MAGIC) return KVTQ_ERROR_IDENTITY;
    const uint32_t version = read(device, KVTQ_VERSION);
    if (VALUE(KVTQ_VERSION_MAJOR, version) != KVTQ_MAP_MAJOR) return KVTQ_ERROR_VERSION;
    if (VALUE(KVTQ_VERSION_MINOR, version) > KVTQ_MAP_MINOR) return KVTQ_ERROR_VERSION;
    const uint32_t shape = read(device, KVTQ_SHAPE);
    device->head_dim = VALUE(KVTQ_SHAPE_HEAD_DIM, shape);
    device->query_group = VALUE(KVTQ_SHAPE_QUERY_GROUP, shape);
    device->max_planes = VALUE(KVTQ_SHAPE_MAX_PLANES, shape);
    device->max_context = read(device, KVTQ_MAX_CONTEXT);
    return kvtq_forget(device);
}

enum kvtq_result kvtq_forget(struct kvtq_device *device) {
    if (!await(device, KVTQ_STATUS, KVTQ_STATUS_PENDING_MASK, 0, true)) return KVTQ_ERROR_TIMEOUT;
    device->started = read(device, KVTQ_COMPLETED);
    for (uint32_t run = 0; run < RUNS; ++run)
        for (uint32_t at = descriptor_runs[run].first; at <= descriptor_runs[run].last; at += 4u)
            device->written[WORD(at)] = read(device, at);
    return KVTQ_OK;
}

enum kvtq_result kvtq_start(struct kvtq_device *device, const struct kvtq_job *job) {
    if (!await(device, KVTQ_STATUS, KVTQ_STATUS_FREE_MASK, 0, false)) return KVTQ_ERROR_QUEUE_FULL;
    for (uint32_t run = 0; run < RUNS; ++run)
        for (uint32_t at = descriptor_runs[run].first; at <= descriptor_runs[run].last; at += 4u) {
            const uint32_t word = job->words[WORD(at)];
            if (device->written[WORD(at)] == word) continue;
            write(device, at, word);
            device->written[WORD(at)] = word;
        }
    write(device, KVTQ_CONTROL, KVTQ_CONTROL_START_MASK);
    ++device->started;
    return KVTQ_OK;
}

enum kvtq_result kvtq_wait(const struct kvtq_device *device) {
    const bool ended =
        await(device, KVTQ_COMPLETED, KVTQ_COMPLETED_JOBS_MASK, device->started, true);
    return ended ? KVTQ_OK : KVTQ_ERROR_TIMEOUT;
}

bool kvtq_idle(const struct kvtq_device *device) {
    return VALUE(KVTQ_COMPLETED_JOBS, read(device, KVTQ_COMPLETED)) == device->started;
}

enum kvtq_result kvtq_status(const struct kvtq_device *device, struct kvtq_failure *failure) {
    const uint32_t events = kvtq_interrupts(device);
    if (events & KVTQ_INTERRUPT_ERROR_MASK) {
        const uint32_t word = read(device, KVTQ_FIRST_ERROR);
        failure->job = VALUE(KVTQ_FIRST_ERROR_JOB, word);
        failure->status = (enum kvtq_job_status)VALUE(KVTQ_FIRST_ERROR_STATUS, word);
        return KVTQ_ERROR_JOB;
    }
    return events & KVTQ_INTERRUPT_OVERRUN_MASK ? KVTQ_ERROR_OVERRUN : KVTQ_OK;
}

void kvtq_interrupt_enable(const struct kvtq_device *device, uint32_t mask) {
    write(device, KVTQ_INTERRUPT_ENABLE, mask);
}

uint32_t kvtq_interrupts(const struct kvtq_device *device) {
    return read(device, KVTQ_INTERRUPT);
}

void kvtq_interrupt_clear(const struct kvtq_device *device, uint32_t mask) {
    write(device, KVTQ_INTERRUPT, mask);
}

uint32_t kvtq_counter(const struct kvtq_device *device, uint32_t address) {
    return read(device, address);
}

/* --- tiers: which tokens are stored, and in which slots (kvtq_hw/contract/tiers.py) ----------- */

/* Stored tokens by part, and slots, as the registers of the same names have them. */
struct spread {
    uint32_t sinks, body, window;
    uint32_t first_sink, window_start, window_slot, body_slot;
};

/* Return the slots of the body's ring, or the largest number if the body only grows. */
static uint32_t body_slots(const struct kvtq_code *code) {
    return code->sliding ? code->sliding - code->window : UINT32_MAX;
}

/* Count the tokens in the body of a context. */
static uint32_t body_tokens(const struct kvtq_code *code, uint32_t tokens) {
    return min(beyond(beyond(tokens, code->sinks), code->window), body_slots(code));
}

/* Return whether the last of `tokens` tokens pushes another from the window to the body. */
static bool leaves(const struct kvtq_code *code, uint32_t tokens) {
    return code->window && code->window < beyond(tokens, code->sinks) && body_slots(code);
}

/* Spread a context of `tokens` tokens over sinks, body and window. */
static struct spread spread_of(const struct kvtq_code *code, uint32_t tokens) {
    struct spread spread = {0, 0, 0, 0, 0, 0, 0};
    const uint32_t forgotten = code->sliding ? beyond(tokens, code->sliding) : 0;
    spread.sinks = beyond(min(tokens, code->sinks), forgotten);
    spread.body = body_tokens(code, tokens);
    spread.window = tokens - forgotten - spread.sinks - spread.body;
    spread.first_sink = min(forgotten, code->sinks);
    if (spread.window) {
        spread.window_slot = (tokens - 1u - code->sinks) % code->window;
        /* the oldest token of the window, as in a context that forgot nothing */
        const uint32_t oldest = spread.sinks + spread.body;
        if (spread.body) spread.window_start = (oldest - code->sinks) % code->window;
    }
    if (spread.body)
        spread.body_slot = (tokens - 1u - code->window - code->sinks) % body_slots(code);
    return spread;
}

/* --- memory: regions of a head (kvtq_hw/contract/layout.py) ----------------------------------- */

/* Return whether the hardware computes a code. */
static bool is_computed(const struct kvtq_device *device, const struct kvtq_code *code) {
    const uint32_t most = min(device->max_planes, MOST_DIGITS);
    return code->key_digits >= 1u && code->key_digits <= most && code->value_digits >= 1u &&
           code->value_digits <= most && code->tier_digits >= 1u &&
           (code->residual ? !code->feedback : code->absmean);
}

/* Write `from` in the hardware's form: a sliding window shortens sinks and window, and digits are
 * those that the hardware has. Field by field: an assignment of the whole may call memcpy. */
static void put_in_form(const struct kvtq_device *device, const struct kvtq_code *from,
                        struct kvtq_code *to) {
    const uint32_t most = min(device->max_planes, MOST_DIGITS);
    const uint32_t window = from->sliding ? min(from->window, from->sliding) : from->window;
    to->sinks = from->sliding ? min(from->sinks, from->sliding - window) : from->sinks;
    to->anchors = from->sliding || !window ? 0 : from->anchors;
    to->window = window;
    to->sliding = from->sliding;
    to->tier_digits = min(from->tier_digits, most);
    to->key_digits = from->key_digits;
    to->value_digits = from->value_digits;
    to->residual = from->residual;
    to->absmean = from->absmean;
    to->feedback = from->feedback;
}

/* Take memory for `slots` records of some planes and scales; return whether it fits. */
static bool take(const struct kvtq_device *device, const struct kvtq_format *format,
                 struct kvtq_memory *memory, uint32_t slots, uint32_t planes, uint32_t scales,
                 struct kvtq_region *region) {
    const uint32_t plane_bytes =
        (device->head_dim + format->digits_per_byte - 1u) / format->digits_per_byte;
    region->base = memory->next;
    region->record_bytes = planes * plane_bytes + scales * format->scale_bytes;
    const uint64_t bytes = (uint64_t)slots * region->record_bytes;
    /* regions start at memory words, whose size is a power of two */
    const uint64_t below = format->word_bytes - 1u;
    const uint64_t padded = (bytes + below) & ~below;
    if (padded > memory->end - memory->next) return false;
    memory->next += padded;
    return true;
}

/* Take memory for the regions of one side of a head; return whether it fits. */
static bool take_side(const struct kvtq_device *device, const struct kvtq_format *format,
                      uint32_t tokens, struct kvtq_memory *memory, const struct kvtq_code *code,
                      uint32_t digits, struct kvtq_vectors *side) {
    const uint32_t sinks = min(tokens, code->sinks), body = body_tokens(code, tokens);
    const uint32_t window = min(tokens - sinks, code->window), tier = code->tier_digits;
    const uint32_t scales = code->residual ? digits : 1u;
    return take(device, format, memory, sinks + min(body, code->anchors), tier, 1u, &side->sinks) &&
           take(device, format, memory, body, digits, scales, &side->body) &&
           take(device, format, memory, window, tier, 1u, &side->window);
}

/* Take memory for all regions of a head; return whether it fits. */
static bool take_head(const struct kvtq_device *device, const struct kvtq_format *format,
                      uint32_t tokens, struct kvtq_memory *memory, struct kvtq_head *head) {
    const struct kvtq_code *const code = &head->code;
    return take_side(device, format, tokens, memory, code, code->key_digits, &head->key) &&
           take_side(device, format, tokens, memory, code, code->value_digits, &head->value);
}

enum kvtq_result kvtq_place_head(const struct kvtq_device *device, const struct kvtq_format *format,
                                 uint32_t tokens, struct kvtq_memory *memory,
                                 struct kvtq_head *head) {
    if (tokens == 0 || tokens > device->max_context) return KVTQ_ERROR_TOKENS;
    if (!is_computed(device, &head->code)) return KVTQ_ERROR_CODE;
    struct kvtq_head trial; /* so that an error changes nothing */
    put_in_form(device, &head->code, &trial.code);
    if (trial.code.anchors > MOST(KVTQ_ANCHORS_COUNT)) return KVTQ_ERROR_RANGE;
    if (memory->next & (format->word_bytes - 1u)) return KVTQ_ERROR_ALIGNMENT;
    if (memory->next > memory->end) return KVTQ_ERROR_MEMORY;
    struct kvtq_memory rest = {memory->next, memory->end};
    if (!take_head(device, format, tokens, &rest, &trial)) return KVTQ_ERROR_MEMORY;
    put_in_form(device, &head->code, &head->code);
    take_head(device, format, tokens, memory, head);
    return KVTQ_OK;
}

/* --- descriptors (docs/registers.md, from job_flags on) --------------------------------------- */

/* Set a register of a descriptor; `place` is the index in an array of registers. */
static void put(struct kvtq_job *job, uint32_t address, uint32_t place, uint32_t word) {
    job->words[WORD(address) + place] = word;
}

/* Return the absmean constant of a ratio in thousandths: ratio * 2**(8 + ceil(log2 D)) / D. */
static uint32_t constant_of(const struct kvtq_device *device, uint32_t thousandths) {
    if (thousandths == 0) return 0; /* most runs are unused, and small processors divide slowly */
    uint32_t shift = 8;
    while (1u << (shift - 8u) < device->head_dim) ++shift;
    const uint32_t divisor = 2000u * device->head_dim;
    return ((thousandths << (shift + 1u)) + divisor / 2u) / divisor;
}

/* Put the constants of a side's body, one per run, or zeros where the scale is the largest
 * magnitude. Return whether they fit: that of a fourth residual plane does not, where head_dim is a
 * little more than a power of two. */
static bool put_constants(const struct kvtq_device *device, const struct kvtq_code *code,
                          struct kvtq_job *job, uint32_t address, uint32_t digits,
                          const uint16_t *feedback_ratios) {
    const uint16_t *ratios = code->feedback ? feedback_ratios : balanced_ratios;
    for (uint32_t run = 0; run < MOST_DIGITS; ++run) {
        uint32_t ratio = 0;
        if (code->residual && code->absmean && run < digits) ratio = residual_ratios[run];
        if (!code->residual && run == 0) ratio = ratios[digits - 1u];
        const uint32_t constant = constant_of(device, ratio);
        if (constant > MOST(KVTQ_KEY_CONSTANT_CONSTANT)) return false;
        put(job, address, run, constant);
    }
    return true;
}

/* Put both halves of an address. */
static void put_address(struct kvtq_job *job, uint32_t address, uint64_t target) {
    put(job, address, 0, (uint32_t)target);
    put(job, address, 1, (uint32_t)(target >> 32));
}

/* Put the addresses of a side, whose first visible sink is in slot `first`; `address` is that of
 * the side's first register: sinks, body and window follow each other. */
static void put_regions(struct kvtq_job *job, uint32_t address, const struct kvtq_vectors *side,
                        uint32_t first) {
    put_address(job, address, side->sinks.base + (uint64_t)first * side->sinks.record_bytes);
    put_address(job, address + KVTQ_KEY_BODY - KVTQ_KEY_SINKS, side->body.base);
    put_address(job, address + KVTQ_KEY_WINDOW - KVTQ_KEY_SINKS, side->window.base);
}

/* Put the numbers of tokens and the slots. */
static void put_spread(struct kvtq_job *job, const struct spread *spread) {
    put(job, KVTQ_TOKENS, 0, spread->sinks + spread->body + spread->window);
    put(job, KVTQ_SINK_TOKENS, 0, spread->sinks);
    put(job, KVTQ_BODY_TOKENS, 0, spread->body);
    put(job, KVTQ_WINDOW_TOKENS, 0, spread->window);
    put(job, KVTQ_WINDOW_START, 0, spread->window_start);
    put(job, KVTQ_WINDOW_SLOT, 0, spread->window_slot);
    put(job, KVTQ_BODY_SLOT, 0, spread->body_slot);
}

/* Put the numbers per query head; 0 where the hardware has no such head, or the job does not
 * attend. Return whether they fit. */
static bool put_queries(const struct kvtq_device *device, const struct kvtq_step *step,
                        struct kvtq_job *job) {
    const int32_t most = (int32_t)(MOST(KVTQ_SINK_MAXIMUM_MAXIMUM) >> 1);
    for (uint32_t g = 0; g < KVTQ_QUERY_EXPONENT_COUNT; ++g) {
        const bool used = step->attend && g < device->query_group;
        const int32_t maximum = used ? step->sink_maximum[g] : 0;
        const uint32_t weight = used ? step->sink_weight[g] : 0;
        const int32_t exponent = used ? step->query_exponent[g] : 0;
        if (maximum > most || maximum < -most - 1) return false;
        if (weight > MOST(KVTQ_SINK_WEIGHT_WEIGHT)) return false;
        put(job, KVTQ_QUERY_EXPONENT, g, FIELD(KVTQ_QUERY_EXPONENT_EXPONENT, exponent));
        put(job, KVTQ_SINK_MAXIMUM, g, FIELD(KVTQ_SINK_MAXIMUM_MAXIMUM, maximum));
        put(job, KVTQ_SINK_WEIGHT, g, FIELD(KVTQ_SINK_WEIGHT_WEIGHT, weight));
    }
    return true;
}

/* Return the word of flags. */
static uint32_t flags_of(const struct kvtq_head *head, const struct kvtq_step *step) {
    const struct kvtq_code *code = &head->code;
    return FIELD(KVTQ_JOB_FLAGS_APPEND, step->append) | FIELD(KVTQ_JOB_FLAGS_ATTEND, step->attend) |
           FIELD(KVTQ_JOB_FLAGS_ROTATE, head->rotate) | FIELD(KVTQ_JOB_FLAGS_CENTRE, head->centre) |
           FIELD(KVTQ_JOB_FLAGS_FEEDBACK, code->feedback) |
           FIELD(KVTQ_JOB_FLAGS_RESIDUAL, code->residual) |
           FIELD(KVTQ_JOB_FLAGS_ABSMEAN, code->absmean) | FIELD(KVTQ_JOB_FLAGS_FIRST, step->first) |
           FIELD(KVTQ_JOB_FLAGS_LEAVING, step->append && leaves(code, step->tokens));
}

enum kvtq_result kvtq_describe(const struct kvtq_device *device, const struct kvtq_head *head,
                               const struct kvtq_step *step, struct kvtq_job *job) {
    const struct kvtq_code *code = &head->code;
    const struct spread spread = spread_of(code, step->tokens);
    const uint32_t stored = spread.sinks + spread.body + spread.window;
    if (stored == 0 || stored > device->max_context) return KVTQ_ERROR_TOKENS;
    if (step->value_exponent > MOST(KVTQ_VALUE_EXPONENT_FLOOR) ||
        head->table > MOST(KVTQ_TABLE_INDEX) ||
        head->anchor_threshold > MOST(KVTQ_ANCHOR_THRESHOLD_HITS))
        return KVTQ_ERROR_RANGE;
    if (!put_queries(device, step, job) ||
        !put_constants(device, code, job, KVTQ_KEY_CONSTANT, code->key_digits,
                       key_feedback_ratios) ||
        !put_constants(device, code, job, KVTQ_VALUE_CONSTANT, code->value_digits,
                       value_feedback_ratios))
        return KVTQ_ERROR_RANGE;
    put(job, KVTQ_JOB_FLAGS, 0, flags_of(head, step));
    put(job, KVTQ_DIGITS, 0,
        FIELD(KVTQ_DIGITS_TIER, code->tier_digits) | FIELD(KVTQ_DIGITS_KEY, code->key_digits) |
            FIELD(KVTQ_DIGITS_VALUE, code->value_digits));
    put(job, KVTQ_TABLE, 0, head->table);
    put(job, KVTQ_VALUE_EXPONENT, 0, step->value_exponent);
    put_spread(job, &spread);
    put(job, KVTQ_TIER_CONSTANT, 0, constant_of(device, balanced_ratios[code->tier_digits - 1u]));
    put_regions(job, KVTQ_KEY_SINKS, &head->key, spread.first_sink);
    put_regions(job, KVTQ_VALUE_SINKS, &head->value, spread.first_sink);
    put(job, KVTQ_ANCHORS, 0, code->anchors);
    put(job, KVTQ_ANCHOR_THRESHOLD, 0, head->anchor_threshold);
    return KVTQ_OK;
}

"""Payload layouts of the streams between blocks, all derived from the configuration."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig, signed_bits
from kvtq_hw.contract.packing import plane_bytes
from rtl.elements import Trit, elements_of

__all__ = [
    "ABSMEAN_CONSTANT_BITS",
    "ANCHOR_BITS",
    "FACTOR_BITS",
    "HIT_BITS",
    "SHIFT_BITS",
    "Operation",
    "accumulate_layout",
    "accumulator_layout",
    "append_task_layout",
    "byte_layout",
    "centres_signature",
    "coded_element_layout",
    "coded_plane_layout",
    "conditioned_layout",
    "counters_layout",
    "element_layout",
    "exponent_layout",
    "factors_signature",
    "hit_task_layout",
    "host_query_layout",
    "job_layout",
    "key_input_layout",
    "key_lanes_layout",
    "key_slice_layout",
    "key_sums_layout",
    "load_layout",
    "output_layout",
    "output_task_layout",
    "packed_plane_layout",
    "plane_layout",
    "queries_layout",
    "query_exponents_layout",
    "query_layout",
    "query_task_layout",
    "requantized_layout",
    "rotated_output_layout",
    "score_layout",
    "score_tap_layout",
    "start_layout",
    "sum_layout",
    "value_exponent_layout",
    "value_exponent_task_layout",
    "value_input_layout",
    "value_slice_layout",
    "vector_code_layout",
    "vector_layout",
    "weight_layout",
]

#: Widths in bits: of an element of a feedback matrix (signed, -4..4), of a row's shift (unsigned).
FACTOR_BITS = 4
SHIFT_BITS = 3

#: Widths in bits: of a job's most anchors, and of a token's hits, which stop at the largest number.
ANCHOR_BITS = 16
HIT_BITS = 12

#: Width in bits of an absmean constant, by which the sum of magnitudes is multiplied to a scale.
ABSMEAN_CONSTANT_BITS = 12


def _slice_elements(config: EngineConfig, planes: int) -> data.ArrayLayout:
    """Return the layout of a slice's elements: plane after plane, the lowest plane first."""
    return data.ArrayLayout(elements_of(config).shape, planes * config.lanes)


def _plane_slice_layout(config: EngineConfig, planes: int) -> data.StructLayout:
    """Return the layout of a slice of `planes` planes at the engine's ports (docs/contract.md)."""
    return data.StructLayout({"elements": _slice_elements(config, planes), **_scale_fields(config)})


def key_input_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a key slice at the engine's port."""
    return _plane_slice_layout(config, config.key_planes_per_cycle)


def value_input_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a value slice at the engine's port."""
    return _plane_slice_layout(config, config.value_planes_per_cycle)


def plane_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one whole plane."""
    return data.StructLayout({"trits": data.ArrayLayout(Trit, config.head_dim)})


def packed_plane_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one whole plane, packed into bytes."""
    count = plane_bytes(config.packing, config.head_dim)
    return data.StructLayout({"bytes": data.ArrayLayout(unsigned(8), count)})


def _scale_fields(config: EngineConfig) -> dict[str, object]:
    return {
        "fraction": unsigned(config.scale_fraction_bits),
        "exponent": unsigned(config.scale_exponent_bits),
        "unit": 1,
        "last": 1,
    }


def _key_tag(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a key slice's tag: scale, slice number, and ends of block and job."""
    return data.StructLayout(
        {
            **_scale_fields(config),
            "slice": range(config.slices),
            "block_end": 1,
            "job_end": 1,
        }
    )


def key_slice_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a key slice with its tag."""
    elements = _slice_elements(config, config.key_planes_per_cycle)
    return data.StructLayout({"elements": elements, "tag": _key_tag(config)})


def element_layout() -> data.StructLayout:
    """Return the layout of one element of a key or value vector, centred or not."""
    return data.StructLayout({"value": signed(signed_bits(2 * VECTOR_MAX))})


def conditioned_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of a centred and rotated vector."""
    return data.StructLayout({"value": signed(config.conditioned_bits)})


def requantized_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of a vector that may have been quantized before."""
    return data.StructLayout({"value": signed(config.requantized_bits)})


def vector_code_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of the parameters with which a vector is quantized.

    planes : number of planes, 1 .. max_planes
    residual : each plane is a run of its own; otherwise all planes are one run
    absmean : scales from the mean magnitude; otherwise from the largest (residual codes only)
    constants : absmean constant of each run
    feedback : rounding with feedback (balanced codes only)
    table : number of the head, which selects the feedback matrix
    unit_first : the record has a run's unit plane first, as values do; otherwise last, as keys do
    """
    return data.StructLayout(
        {
            "planes": range(config.max_planes + 1),
            "residual": 1,
            "absmean": 1,
            "constants": data.ArrayLayout(unsigned(ABSMEAN_CONSTANT_BITS), config.max_planes),
            "feedback": 1,
            "table": range(config.table_heads),
            "unit_first": 1,
        }
    )


def coded_element_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element's digits in one run, with the format of the record.

    Elements come in order, run after run. Digits beyond the run's planes are zero.
    """
    return data.StructLayout(
        {
            "trits": data.ArrayLayout(Trit, config.max_planes),
            "fraction": unsigned(config.scale_fraction_bits),
            "exponent": unsigned(config.scale_exponent_bits),
            "planes": range(config.max_planes + 1),
            "residual": 1,
            "unit_first": 1,
        }
    )


def vector_layout() -> data.StructLayout:
    """Return the layout of one element of a new vector; -2**15 is read as -VECTOR_MAX."""
    return data.StructLayout({"value": signed(16)})


def append_task_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of an append path's task for one vector.

    leaving : the vector comes as planes; otherwise as 16-bit elements
    centre : subtract the head's centre
    rotate : apply the Hadamard transform
    code : how to quantize the vector, and the number of the head
    """
    return data.StructLayout(
        {"leaving": 1, "centre": 1, "rotate": 1, "code": vector_code_layout(config)}
    )


def byte_layout() -> data.StructLayout:
    """Return the layout of one byte of a record; `last` marks the record's last byte."""
    return data.StructLayout({"data": unsigned(8), "last": 1})


def exponent_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of the largest exponent of a vector's scales."""
    return data.StructLayout({"exponent": unsigned(config.scale_exponent_bits)})


def load_layout() -> data.StructLayout:
    """Return the layout of a word for the tables; `first` marks a header (`rtl.tables.Tables`)."""
    return data.StructLayout({"first": 1, "data": unsigned(32)})


def centres_signature(config: EngineConfig) -> wiring.Signature:
    """Return the read port of key centres, seen from the reader.

    The value comes one cycle after the address.
    """
    return wiring.Signature(
        {
            "table": Out(range(config.table_heads)),
            "element": Out(range(config.head_dim)),
            "value": In(signed(16)),
        }
    )


def factors_signature(config: EngineConfig) -> wiring.Signature:
    """Return the read port of feedback matrices, seen from the reader.

    `factors` and `shift` come one cycle after the address.

    table : number of the head
    word : word of the packed matrix (`EngineConfig.feedback_words`); gives `factors`
    row : row of the matrix; gives its `shift`
    """
    return wiring.Signature(
        {
            "table": Out(range(config.table_heads)),
            "word": Out(range(config.feedback_words)),
            "row": Out(range(config.head_dim)),
            "factors": In(data.ArrayLayout(signed(FACTOR_BITS), config.feedback_lanes)),
            "shift": In(SHIFT_BITS),
        }
    )


def coded_plane_layout(config: EngineConfig, planes: int = 1) -> data.StructLayout:
    """Return the layout of `planes` whole planes of one run, with scale and flags."""
    return data.StructLayout(
        {"trits": data.ArrayLayout(Trit, planes * config.head_dim), **_scale_fields(config)}
    )


def queries_layout(config: EngineConfig) -> data.ArrayLayout:
    """Return the layout of the query elements of one slice, as [head][lane]."""
    return data.ArrayLayout(
        data.ArrayLayout(signed(config.query_bits), config.lanes), config.query_group
    )


def query_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of every head's query."""
    return data.StructLayout(
        {"values": data.ArrayLayout(signed(config.query_bits), config.query_group)}
    )


def host_query_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of every head's query from the host: 16 bits, symmetric."""
    return data.StructLayout({"values": data.ArrayLayout(signed(16), config.query_group)})


def query_exponents_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of the exponent of every head's query."""
    exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
    return data.StructLayout({"query_exponent": exponents})


def query_task_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a query task: whether to rotate, and the incoming queries' exponents."""
    exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
    return data.StructLayout({"rotate": 1, "query_exponent": exponents})


def start_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of where a job's softmax starts: the learned sink of every head.

    sink_maximum : running maximum
    sink_weight : sum of weights; below 2**(W-1) where a head has no learned sink
    """
    heads = config.query_group
    return data.StructLayout(
        {
            "sink_maximum": data.ArrayLayout(signed(config.maximum_bits), heads),
            "sink_weight": data.ArrayLayout(unsigned(config.weight_width), heads),
        }
    )


def job_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job at the engine's port."""
    return data.StructLayout(
        {
            "last_token": unsigned(config.token_bits),
            "query_exponent": data.ArrayLayout(
                signed(config.query_exponent_bits), config.query_group
            ),
            **start_layout(config).members,
        }
    )


def value_exponent_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job's value exponent, which may be known later than `job_layout`."""
    return data.StructLayout({"value_exponent": unsigned(config.scale_exponent_bits)})


def value_exponent_task_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job's update of its head's value exponent.

    table : number of the head
    first : ignore the exponent kept so far
    floor : lower limit of the exponent
    records : number of value records that the job writes
    attend : send the exponent to the core and the output rotator
    rotate : outputs are rotated back
    """
    return data.StructLayout(
        {
            "table": range(config.table_heads),
            "first": 1,
            "floor": unsigned(config.scale_exponent_bits),
            "records": range(3),
            "attend": 1,
            "rotate": 1,
        }
    )


def key_lanes_layout(config: EngineConfig) -> data.StructLayout:
    """Return the input layout of the key lanes: a key slice and the matching query slice."""
    return data.StructLayout(
        {
            "elements": _slice_elements(config, config.key_planes_per_cycle),
            "queries": queries_layout(config),
            "tag": _key_tag(config),
        }
    )


def key_sums_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout from key lanes to plane scaler: one slice's sum for every head."""
    sums = data.ArrayLayout(signed(config.sum_bits), config.query_group)
    return data.StructLayout({"sums": sums, "tag": _key_tag(config)})


def score_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one token's score for every head; `saturated` has a bit per head."""
    return data.StructLayout(
        {
            "scores": data.ArrayLayout(signed(config.score_bits), config.query_group),
            "saturated": unsigned(config.query_group),
            "block_end": 1,
            "job_end": 1,
        }
    )


def score_tap_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of what the engine shows of its scores: `valid` in a score's cycle."""
    score = score_layout(config).members
    return data.StructLayout({"valid": 1, "scores": score["scores"], "job_end": 1})


def hit_task_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job's task for the anchors: which of its tokens get hits.

    counted : the job gives hits; otherwise no other field has a meaning
    table : number of the head
    sink_tokens : tokens of the sinks, without anchors
    settled_tokens : tokens before the window: sinks, anchors and body
    window_tokens, window_start : tokens of the window, and the slot that is read first
    """
    tokens = range(config.max_context + 1)
    slots = max(config.anchor_slots, 1)
    return data.StructLayout(
        {
            "counted": 1,
            "table": range(config.table_heads),
            "sink_tokens": tokens,
            "settled_tokens": tokens,
            "window_tokens": range(slots + 1),
            "window_start": range(slots),
        }
    )


def weight_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one token's softmax weight for every head.

    `shifts` (on the token that opens a block) rescale everything accumulated before.
    """
    return data.StructLayout(
        {
            "weights": data.ArrayLayout(unsigned(config.weight_width), config.query_group),
            "shifts": data.ArrayLayout(unsigned(config.rescale_bits), config.query_group),
            "block_start": 1,
            "job_start": 1,
            "job_end": 1,
        }
    )


def sum_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job's softmax denominators."""
    sums = data.ArrayLayout(unsigned(config.sum_of_weights_bits), config.query_group)
    return data.StructLayout({"sums": sums})


def value_slice_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a value slice with its number within the plane."""
    return data.StructLayout(
        {
            "elements": _slice_elements(config, config.value_planes_per_cycle),
            **_scale_fields(config),
            "slice": range(config.slices),
        }
    )


class Operation(enum.Enum, shape=2):  # type: ignore[call-arg]  # what Amaranth adds to enum
    """Operation of the value lanes on one beat."""

    ADD = 0  #: add weight times element to one slice of the accumulators
    CLEAR = 1  #: zero all accumulators: a job begins
    SHIFT = 2  #: shift all accumulators right: a block begins
    DRAIN = 3  #: stream all accumulators out: a job ends


def accumulate_layout(config: EngineConfig) -> data.StructLayout:
    """Return the input layout of the value lanes. An operation reads only the fields it needs.

    weighty : 0 for an ADD whose weights are zero for all heads: it reads nothing else
    """
    return data.StructLayout(
        {
            "operation": Operation,
            "weighty": 1,
            "elements": _slice_elements(config, config.value_planes_per_cycle),
            "slice": range(config.slices),
            "weights": data.ArrayLayout(unsigned(config.tripled_weight_bits), config.query_group),
            "shifts": data.ArrayLayout(unsigned(config.rescale_bits), config.query_group),
        }
    )


def accumulator_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of every head's accumulators; `last` on element D - 1."""
    values = data.ArrayLayout(signed(config.accumulator_bits), config.query_group)
    return data.StructLayout({"values": values, "last": 1})


def output_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of every head's output; `last` on element D - 1."""
    values = data.ArrayLayout(signed(config.output_bits), config.query_group)
    return data.StructLayout({"values": values, "last": 1})


def output_task_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of an output task: whether to rotate back, and the value exponent."""
    return data.StructLayout({"rotate": 1, "value_exponent": unsigned(config.scale_exponent_bits)})


def rotated_output_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of one element of every head's output to the host.

    `last` is on element D - 1. True output = value * 2**exponent, in the unit of the value vectors.
    """
    values = data.ArrayLayout(signed(32), config.query_group)
    return data.StructLayout({"values": values, "exponent": signed(8), "last": 1})


def counters_layout() -> data.StructLayout:
    """Return the layout of the engine's event counters since reset; each wraps at 2**32.

    busy_cycles : cycles with a job in flight, from its transfer to its last output's, both included
    key_slices, value_slices : slices taken
    starved_cycles : cycles in which a slice could be taken but its stream held none
    stalled_cycles : cycles in which an output waited for its consumer
    saturated_scores : scores that were clamped, counted per head
    """
    names = (
        "busy_cycles",
        "key_slices",
        "value_slices",
        "starved_cycles",
        "stalled_cycles",
        "saturated_scores",
    )
    return data.StructLayout(dict.fromkeys(names, unsigned(32)))

"""Payload layouts of the streams between blocks, all derived from the configuration."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig, signed_bits
from kvtq_hw.contract.packing import plane_bytes
from rtl.elements import Trit, elements_of

__all__ = [
    "ABSMEAN_CONSTANT_BITS",
    "FACTOR_BITS",
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
    "sum_layout",
    "value_exponent_layout",
    "value_exponent_task_layout",
    "value_input_layout",
    "value_slice_layout",
    "vector_code_layout",
    "vector_layout",
    "weight_layout",
]

#: Signed width of an element of a feedback matrix, -4..4, and unsigned width of a row's shift.
FACTOR_BITS = 4
SHIFT_BITS = 3

#: Width of the constant that an absmean scale is the sum of magnitudes times.
ABSMEAN_CONSTANT_BITS = 12


def _slice_elements(config: EngineConfig, planes: int) -> data.ArrayLayout:
    """The elements of one slice: plane after plane, the lowest first."""
    return data.ArrayLayout(elements_of(config).shape, planes * config.lanes)


def _plane_slice_layout(config: EngineConfig, planes: int) -> data.StructLayout:
    """One slice of `planes` planes at the engine's edge (docs/contract.md)."""
    return data.StructLayout({"elements": _slice_elements(config, planes), **_scale_fields(config)})


def key_input_layout(config: EngineConfig) -> data.StructLayout:
    """A key slice at the engine's edge."""
    return _plane_slice_layout(config, config.key_planes_per_cycle)


def value_input_layout(config: EngineConfig) -> data.StructLayout:
    """A value slice at the engine's edge."""
    return _plane_slice_layout(config, config.value_planes_per_cycle)


def plane_layout(config: EngineConfig) -> data.StructLayout:
    """One whole plane."""
    return data.StructLayout({"trits": data.ArrayLayout(Trit, config.head_dim)})


def packed_plane_layout(config: EngineConfig) -> data.StructLayout:
    """One whole plane in bytes."""
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
    """What travels with a key slice: its scale, its slice number and where its token stands."""
    return data.StructLayout(
        {
            **_scale_fields(config),
            "slice": range(config.slices),
            "block_end": 1,
            "job_end": 1,
        }
    )


def key_slice_layout(config: EngineConfig) -> data.StructLayout:
    """A key slice with its tag."""
    elements = _slice_elements(config, config.key_planes_per_cycle)
    return data.StructLayout({"elements": elements, "tag": _key_tag(config)})


def element_layout() -> data.StructLayout:
    """One element of a key or value vector, centred or not."""
    return data.StructLayout({"value": signed(signed_bits(2 * VECTOR_MAX))})


def conditioned_layout(config: EngineConfig) -> data.StructLayout:
    """One element of a centred and rotated vector."""
    return data.StructLayout({"value": signed(config.conditioned_bits)})


def requantized_layout(config: EngineConfig) -> data.StructLayout:
    """One element of a vector that may have been quantized before."""
    return data.StructLayout({"value": signed(config.requantized_bits)})


def vector_code_layout(config: EngineConfig) -> data.StructLayout:
    """How a vector is quantized.

    planes : number of planes, 1 .. max_planes
    residual : a run for each plane, instead of one run
    absmean : scales from the mean magnitude; from the largest one otherwise (residual codes only)
    constants : absmean constant of each run
    feedback : rounding with feedback (balanced codes only)
    table : number of the head, whose feedback matrix it is
    unit_first : order of a run's planes in the record, as values have it; keys have it reversed
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
    """The digits of one element in one run, with what the record's layout depends on.

    Elements come in order, run after run. Digits from the run's number of planes on are zero.
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
    """One element of a new vector; -2**15 is read as -VECTOR_MAX."""
    return data.StructLayout({"value": signed(16)})


def append_task_layout(config: EngineConfig) -> data.StructLayout:
    """What happens to one vector.

    leaving : it comes as planes, else as 16-bit elements
    centre : the head's centre is subtracted
    rotate : it is transformed by the Hadamard transform
    code : how it is quantized, and the number of the head
    """
    return data.StructLayout(
        {"leaving": 1, "centre": 1, "rotate": 1, "code": vector_code_layout(config)}
    )


def byte_layout() -> data.StructLayout:
    """One byte of a record; `last` on its last."""
    return data.StructLayout({"data": unsigned(8), "last": 1})


def exponent_layout(config: EngineConfig) -> data.StructLayout:
    """Largest exponent of a vector's scales."""
    return data.StructLayout({"exponent": unsigned(config.scale_exponent_bits)})


def load_layout() -> data.StructLayout:
    """A word for the tables; `first` on a header (`rtl.tables.Tables`)."""
    return data.StructLayout({"first": 1, "data": unsigned(32)})


def centres_signature(config: EngineConfig) -> wiring.Signature:
    """Read port of key centres, seen from the reader. Answers come a cycle after the address."""
    return wiring.Signature(
        {
            "table": Out(range(config.table_heads)),
            "element": Out(range(config.head_dim)),
            "value": In(signed(16)),
        }
    )


def factors_signature(config: EngineConfig) -> wiring.Signature:
    """Read port of feedback matrices, seen from the reader. Answers come a cycle after the address.

    table, word : word of the packed matrix (`EngineConfig.feedback_words`); gives `factors`
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
    """One whole plane, or `planes` of one run, with scale and flags."""
    return data.StructLayout(
        {"trits": data.ArrayLayout(Trit, planes * config.head_dim), **_scale_fields(config)}
    )


def queries_layout(config: EngineConfig) -> data.ArrayLayout:
    """The query elements of one slice: [head][lane]."""
    return data.ArrayLayout(
        data.ArrayLayout(signed(config.query_bits), config.lanes), config.query_group
    )


def query_layout(config: EngineConfig) -> data.StructLayout:
    """One element of every head's query."""
    return data.StructLayout(
        {"values": data.ArrayLayout(signed(config.query_bits), config.query_group)}
    )


def host_query_layout(config: EngineConfig) -> data.StructLayout:
    """One element of every head's query as the host gives it: 16 bits, symmetric."""
    return data.StructLayout({"values": data.ArrayLayout(signed(16), config.query_group)})


def query_exponents_layout(config: EngineConfig) -> data.StructLayout:
    """The exponent of every head's query."""
    exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
    return data.StructLayout({"query_exponent": exponents})


def query_task_layout(config: EngineConfig) -> data.StructLayout:
    """How a job's queries are conditioned: whether they are rotated, exponents of what comes."""
    exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
    return data.StructLayout({"rotate": 1, "query_exponent": exponents})


def job_layout(config: EngineConfig) -> data.StructLayout:
    """A job's description."""
    return data.StructLayout(
        {
            "last_token": unsigned(config.token_bits),
            "query_exponent": data.ArrayLayout(
                signed(config.query_exponent_bits), config.query_group
            ),
        }
    )


def value_exponent_layout(config: EngineConfig) -> data.StructLayout:
    """A job's value exponent, which may be known later than the rest of the job."""
    return data.StructLayout({"value_exponent": unsigned(config.scale_exponent_bits)})


def value_exponent_task_layout(config: EngineConfig) -> data.StructLayout:
    """What a job does to its head's value exponent.

    table : number of the head
    first : what was before does not count
    floor : the exponent is at least this
    records : value records that the job writes
    attend : core and outputs want to know
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
    """Input of the key lanes: a key slice beside the query slice it meets."""
    return data.StructLayout(
        {
            "elements": _slice_elements(config, config.key_planes_per_cycle),
            "queries": queries_layout(config),
            "tag": _key_tag(config),
        }
    )


def key_sums_layout(config: EngineConfig) -> data.StructLayout:
    """Output of the key lanes, input of the plane scaler: one slice's sum for every head."""
    sums = data.ArrayLayout(signed(config.sum_bits), config.query_group)
    return data.StructLayout({"sums": sums, "tag": _key_tag(config)})


def score_layout(config: EngineConfig) -> data.StructLayout:
    """One token's score for every head; `saturated` has a bit per head."""
    return data.StructLayout(
        {
            "scores": data.ArrayLayout(signed(config.score_bits), config.query_group),
            "saturated": unsigned(config.query_group),
            "block_end": 1,
            "job_end": 1,
        }
    )


def weight_layout(config: EngineConfig) -> data.StructLayout:
    """One token's softmax weight for every head.

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
    """A job's softmax denominators."""
    sums = data.ArrayLayout(unsigned(config.sum_of_weights_bits), config.query_group)
    return data.StructLayout({"sums": sums})


def value_slice_layout(config: EngineConfig) -> data.StructLayout:
    """A value slice with its number within the plane."""
    return data.StructLayout(
        {
            "elements": _slice_elements(config, config.value_planes_per_cycle),
            **_scale_fields(config),
            "slice": range(config.slices),
        }
    )


class Operation(enum.Enum, shape=2):  # type: ignore[call-arg]  # what Amaranth adds to enum
    """What the value lanes do with a beat."""

    ADD = 0  #: add weight times element to one slice of the accumulators
    CLEAR = 1  #: zero all accumulators: a job begins
    SHIFT = 2  #: shift all accumulators right: a block begins
    DRAIN = 3  #: stream all accumulators out: a job ends


def accumulate_layout(config: EngineConfig) -> data.StructLayout:
    """Input of the value lanes. An operation reads only the fields it needs."""
    return data.StructLayout(
        {
            "operation": Operation,
            "elements": _slice_elements(config, config.value_planes_per_cycle),
            "slice": range(config.slices),
            "weights": data.ArrayLayout(unsigned(config.tripled_weight_bits), config.query_group),
            "shifts": data.ArrayLayout(unsigned(config.rescale_bits), config.query_group),
        }
    )


def accumulator_layout(config: EngineConfig) -> data.StructLayout:
    """One element of every head's accumulators; `last` on element D - 1."""
    values = data.ArrayLayout(signed(config.accumulator_bits), config.query_group)
    return data.StructLayout({"values": values, "last": 1})


def output_layout(config: EngineConfig) -> data.StructLayout:
    """One element of every head's output; `last` on element D - 1."""
    values = data.ArrayLayout(signed(config.output_bits), config.query_group)
    return data.StructLayout({"values": values, "last": 1})


def output_task_layout(config: EngineConfig) -> data.StructLayout:
    """How a job's outputs are rotated back: whether they are, and the job's value exponent."""
    return data.StructLayout({"rotate": 1, "value_exponent": unsigned(config.scale_exponent_bits)})


def rotated_output_layout(config: EngineConfig) -> data.StructLayout:
    """One element of every head's output as the host gets it; `last` on element D - 1.

    True output = value * 2**exponent, in the unit of the value vectors.
    """
    values = data.ArrayLayout(signed(32), config.query_group)
    return data.StructLayout({"values": values, "exponent": signed(8), "last": 1})


def counters_layout() -> data.StructLayout:
    """Event counters of the engine since reset; each wraps at 2**32.

    busy_cycles : cycles with a job in flight, from its transfer to its last output's, both included
    key_slices, value_slices : slices taken
    starved_cycles : cycles in which a slice could be taken but its stream held none
    stalled_cycles : cycles in which an output waited for its taker
    saturated_scores : scores of single heads that were clamped
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

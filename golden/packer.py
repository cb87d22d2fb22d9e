"""Golden packer: trits to bytes.

``5in8`` is the trit block of ASTC's integer sequence encoding (Khronos Data Format Specification,
"Integer Sequence Encoding") with zero bits per value: five digits t0..t4 in 0..2 become one byte.
The decoder takes some twenty gates, while a base-3 byte would need a divider. In return, the 243
byte values are not in numerical order. Trits 0, +1 and -1 are stored as digits 0, 1 and 2. The two
bits of a digit are then the (positive, negative) flags of the trit, and a zero byte is five zeros.

``2bit`` stores a trit as (nonzero, negative) in two bits, four trits per byte, the first lowest.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from golden.unpacker import decode_table
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, Packing

__all__ = ["encode_table", "pack"]


@cache
def encode_table(packing: Packing) -> Tensor:
    """Return the byte of every group of n trits: uint8 [3**n], index ``sum_j (trit_j + 1) * 3**j``.

    Where several bytes decode to the same trits (256 bytes, 243 groups), the smallest byte is used.
    """
    decoded = decode_table(packing).long()
    digits = decoded.shape[-1]
    index = ((decoded + 1) * 3 ** torch.arange(digits)).sum(-1)
    table = torch.full((3**digits,), 256)
    table.scatter_reduce_(0, index, torch.arange(256), "amin")
    return table.to(torch.uint8)


def pack(packing: Packing, trits: Tensor) -> Tensor:
    """Pack trits int8 [..., D] into bytes uint8 [..., plane_bytes(packing, D)].

    Raises
    ------
    ValueError
        When a trit is not -1, 0 or +1.
    """
    if trits.numel() and int(trits.abs().max()) > 1:
        wrong = trits[(trits < -1) | (trits > 1)][0].item()
        raise ValueError(f"trits: {wrong} is not a trit; allowed are -1, 0, 1")
    group = DIGITS_PER_BYTE[packing]
    padded = torch.nn.functional.pad(trits.long() + 1, (0, -trits.shape[-1] % group), value=1)
    powers = 3 ** torch.arange(group, device=trits.device)
    index = (padded.unflatten(-1, (-1, group)) * powers).sum(-1)
    return encode_table(packing).to(trits.device)[index]

"""Tensors as a safetensors file, written in pieces, so that they are never in memory a second time."""

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

PIECE_BYTES = 16 * 2**20
TYPES = {  # in the order in which a file has them
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def safetensors_in_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes that `safetensors.torch.save` gives, about PIECE_BYTES at a time; the largest tensor is one piece."""
    order = list(TYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, object] = {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": TYPES[tensors[name].dtype], "shape": list(tensors[name].shape),
                        "data_offsets": [begin, end]}  # fmt: skip
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    small = bytearray(len(text).to_bytes(8, "little") + text)
    for view in (_bytes_of(tensors[name]) for name in names):
        if len(small) + len(view) > PIECE_BYTES:
            yield bytes(small)
            small.clear()
        if len(view) > PIECE_BYTES:
            yield view
        else:
            small += view
    yield bytes(small)


def _bytes_of(tensor: Tensor) -> memoryview:
    """On the CPU, in the order of the indices."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

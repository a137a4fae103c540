import pytest
import torch
from safetensors.torch import save

from candid import tensor_files
from candid.tensor_files import safetensors_in_pieces


def tensors() -> dict[str, torch.Tensor]:
    return {
        "b": torch.randn(3, 4),
        "a": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "steps": torch.tensor(5),
        "kept": torch.tensor([True, False]),
        "half": torch.randn(4).bfloat16(),
        "größe": torch.zeros(0, 2),
        "double": torch.randn(3).double(),
        "short": torch.arange(3, dtype=torch.int16),
        "large": torch.randn(100, 100),
    }


@pytest.mark.parametrize("piece_bytes", [1, 1000, 2**24])
def test_the_pieces_are_the_file_that_the_library_writes(piece_bytes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", piece_bytes)
    given = tensors()
    expected = save({name: tensor.contiguous() for name, tensor in given.items()})
    assert b"".join(safetensors_in_pieces(given)) == expected


def test_pieces_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 1000)
    sizes = [len(piece) for piece in safetensors_in_pieces(tensors())]
    assert max(sizes) == 40_000  # the largest tensor by itself
    assert sum(size for size in sizes if size != 40_000) < 3000


def test_no_tensors_are_a_file_too():
    assert b"".join(safetensors_in_pieces({})) == save({})

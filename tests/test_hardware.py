"""What suits the machine."""

import pytest
import torch

from bat_ui.errors import explained
from bat_ui.hardware import mixed_dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({}, torch.float32), ({"avx512_bf16": False}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16),
     ({"amx_bf16": True}, torch.bfloat16)],
)  # fmt: skip
def test_a_cpu_computes_in_bfloat16_only_where_it_need_not_emulate_it(capabilities, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert mixed_dtype(torch.device("cpu")) == dtype


def test_too_little_graphics_memory_is_said_with_what_to_do():
    assert "--memory 8" in explained(torch.OutOfMemoryError("CUDA out of memory."))
    assert explained(RuntimeError("shape mismatch")) is None

"""NF4 as lesson 04 writes it, against bitsandbytes."""

import math

import pytest
import torch
from bitsandbytes import functional as bnb
from lessons import definitions


@pytest.fixture(scope="module")
def levels() -> torch.Tensor:
    _, quantile_levels = definitions("04_qlora", "normal_quantile", "quantile_levels", math=math, torch=torch)
    return quantile_levels(4)


def test_the_levels_are_the_librarys(levels):
    torch.testing.assert_close(levels, bnb.get_4bit_type("nf4", device="cpu"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_widths_have_zero_and_both_ends(bits):
    _, quantile_levels = definitions("04_qlora", "normal_quantile", "quantile_levels", math=math, torch=torch)
    found = quantile_levels(bits)
    assert len(found) == 2**bits and found.diff().gt(0).all() and 0 in found
    assert found[0] == -1 and found[-1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_block_has_the_librarys_codes(levels, dtype):
    quantize, dequantize = definitions("04_qlora", "quantize", "dequantize", torch=torch)
    torch.manual_seed(0)
    weight = (torch.randn(96, 128) * 0.05).to(dtype)
    codes, scales = quantize(weight, levels)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    theirs = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).reshape(-1, 64)
    assert (codes == theirs).all()
    torch.testing.assert_close(scales.flatten(), state.absmax, rtol=0, atol=0)
    back = bnb.dequantize_4bit(packed, state).float()
    torch.testing.assert_close(dequantize(codes, scales, levels, weight.shape), back, rtol=1e-2, atol=1e-4)

"""Sums over segments: values, and the precision in which they are taken."""

from __future__ import annotations

import pytest
import torch

from ocp_faenet.geometry.segments import segment_count, segment_mean, segment_sum

HALF = [torch.bfloat16, torch.float16]


def ones_on_average(dtype, rows=2000):
    """Rows of two segments, the second a single one; a third is empty."""
    values = 1 + 0.3 * torch.randn(2, rows + 1, 8, generator=torch.Generator().manual_seed(0))
    index = torch.zeros(rows + 1, dtype=torch.long)
    index[-1] = 1
    return values.to(dtype), index


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_values(dtype):
    """Half precision is rounded once, at the end: a sum kept in bfloat16 would stay at 256."""
    values, index = ones_on_average(dtype)
    assert segment_count(index, 3).tolist() == [2000, 1, 0]
    zero = torch.zeros(2, 8, dtype=torch.float64)
    parts = values.double()
    total = torch.stack([parts[:, :-1].sum(1), parts[:, -1], zero], 1)
    mean = torch.stack([parts[:, :-1].mean(1), parts[:, -1], zero], 1)
    for found, exact in (
        (segment_sum(values, index, 3), total),
        (segment_mean(values, index, 3), mean),
        (segment_mean(values, index, 3, segment_count(index, 3)), mean),
    ):
        assert found.dtype == dtype
        close = 0.6 * torch.finfo(dtype).eps if dtype in HALF else 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), exact, rtol=close, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_are_summed_as_they_are(dtype):
    values, index = ones_on_average(dtype)
    plain = torch.zeros(2, 3, 8, dtype=dtype).index_add(1, index, values)
    assert torch.equal(segment_sum(values, index, 3), plain)
    counts = torch.tensor([2000, 1, 1]).unsqueeze(-1).to(dtype)
    assert torch.equal(segment_mean(values, index, 3), plain / counts)

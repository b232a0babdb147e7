"""What localisation is made of: rows by shape, ratios, executions of regions that write."""

from __future__ import annotations

import pytest
import torch

from vlm_ci.parity.localisation.judging import FACTOR, Rows, ratios
from vlm_ci.targets.executions import Captured, Recorder, keep, run_again


def test_the_rows_of_a_request_are_found_by_shape():
    kinds = torch.tensor([[-1, 0, 0], [0, 0, 0]], dtype=torch.int8)
    rows, everything = Rows(kinds, request=0), Rows(kinds)
    hidden = torch.arange(6.0).reshape(2, 3, 1)
    assert rows.of(hidden).flatten().tolist() == [1.0, 2.0]
    assert everything.of(hidden).flatten().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert rows.of(hidden.expand(4, 2, 3, 1)).shape == (2, 4, 1)  # positions by axis
    assert rows.of(hidden[:, None].expand(2, 8, 3, 5)).shape == (2, 8, 5)  # by head
    assert rows.of(hidden.flatten(0, 1)).flatten().tolist() == [1.0, 2.0]
    assert rows.of(torch.ones(7, 4)).shape == (7, 4)  # patches


def test_a_ratio_is_the_error_in_multiples_of_eagers_own():
    truth = torch.ones(2, 4, dtype=torch.float64)
    eager = truth + 1e-3
    assert ratios(truth + 4e-3, eager, truth).tolist() == pytest.approx([4.0, 4.0])
    actual = eager.clone()
    actual[1] += 0.1
    assert ratios(actual, eager, truth)[1] > 100 > FACTOR > ratios(actual, eager, truth)[0]
    assert ratios(eager.fill_(torch.nan), eager, truth).tolist() == [0.0, 0.0]  # so is eager
    actual[0, 0] = torch.nan
    assert ratios(actual, truth, truth)[0] == torch.inf
    assert ratios(truth[:1], truth, truth).tolist() == [torch.inf]
    experts = torch.tensor([1, 2])
    assert ratios(experts, experts.flip(0), None).tolist() == [torch.inf] * 2
    assert ratios(experts, experts.flip(0), experts).tolist() == [0.0] * 2  # rounding decides


def test_what_a_region_writes_into_its_inputs_is_kept():
    class Writes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1.0) * 2.0

    graph = torch.fx.symbolic_trace(Writes())
    recorder, given = Recorder(lambda: "here"), torch.zeros(3)
    recorder.execute(1, lambda x: (graph(x),), (given,))
    (execution,) = recorder.executions
    assert (execution.call, execution.inputs[0].tolist()) == ("here", [0.0] * 3)
    assert execution.written[0].tolist() == given.tolist() == [1.0] * 3
    again = run_again(Captured(graph=keep(graph), place=""), execution, wider=torch.float64)
    assert again.outputs[0].tolist() == [2.0] * 3
    assert again.written[0].dtype == torch.float64
    assert execution.inputs[0].tolist() == [0.0] * 3

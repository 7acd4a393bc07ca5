"""Work that depends on the input: priced and measured as a distribution, budgeted by percentile."""

import numpy as np
import pytest
import torch
from torch import nn

from paredown import budget, device, runtime
from paredown.cost import price
from paredown.cost.over_inputs import figures_over_inputs
from paredown.errors import InputError
from paredown.figure import over_inputs, with_parts
from paredown.graph.capture import capture, capture_run
from paredown.graph.varying import branching, expected, forget, shapes_alone, varies
from paredown.measure.compare import Timed
from paredown.measure.over_inputs import compared, passes
from paredown.workload import Workload

WIDTH = 128


class Deep(nn.Module):
    """The second, expensive layer runs for positive inputs alone; remembers how often it ran."""

    varies = "hard inputs take more layers"

    def __init__(self, share=0.25):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.share, self.ran = share, 0

    def forget(self):
        self.ran = 0

    def forward(self, x):
        y = self.first(x)
        if shapes_alone(x):
            with branching():
                expected(self.share)
                return torch.where(x.sum() > 0, self.again(y), y)
        return self.again(y) if float(x.sum()) > 0 else y

    def again(self, y):
        self.ran += 1
        for _ in range(20):
            y = self.second(y)
        return y


def workload(hard=30, n=120):
    torch.manual_seed(0)
    signs = [1.0] * hard + [-1.0] * (n - hard)
    return Workload(
        Deep(hard / n).eval(),
        (torch.ones(8, WIDTH),),
        population=[s * torch.ones(8, WIDTH) for s in signs],
    )


def test_a_real_run_records_the_branch_it_takes_and_a_fake_one_every_branch():
    w = workload()
    easy, hard = (capture_run(w, (s * torch.ones(8, WIDTH),)) for s in (-1.0, 1.0))
    one = 8 * WIDTH * WIDTH
    assert (easy.macs, hard.macs) == (one, 21 * one)
    fake = capture(w)
    assert sum(n.macs or 0 for n in fake.nodes) == 21 * one
    assert fake.macs == one + round(0.25 * 20 * one)


def test_the_price_of_shares_is_the_mean_of_the_price_over_inputs():
    w, machine = workload(), device.load("xeon-8480")
    found = figures_over_inputs(w, machine)
    macs = found["macs"]
    assert macs.how == "counted"
    assert macs.value == capture(w).macs
    latency = found["latency"]
    assert (latency.how, latency.over, latency.n) == ("predicted", "inputs", 120)
    easy, hard = (
        price(capture_run(w, (s * torch.ones(8, WIDTH),)), machine).seconds for s in (-1.0, 1.0)
    )
    assert latency.value == pytest.approx(0.75 * easy + 0.25 * hard)
    assert latency.quantiles["p50"] == pytest.approx(easy)
    assert latency.quantiles["p90"] == latency.quantiles["p99"] == pytest.approx(hard)
    expectation = price(capture(w), machine).seconds
    assert expectation == pytest.approx(latency.value, rel=0.5)  # it has a few calls more


def test_quantiles_are_numpys_and_need_a_hundred_inputs():
    values = np.random.default_rng(0).random(137)
    figure = over_inputs(values.tolist(), "s", "measured")
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert figure.quantiles[name] == pytest.approx(np.quantile(values, q))
    assert with_parts({"latency": figure})["latency.p95"] == figure.quantiles["p95"]
    few = over_inputs([1.0, 2.0], "s", "measured")
    assert (few.value, few.quantiles) == (1.5, None)
    (asked,) = budget.parse(["latency.p95 <= 5 ms"])
    assert "need 100 of them, 2 were given" in asked.judge(asked.pick({"latency": few})).why


def test_a_percentile_decides_where_the_mean_would_not():
    w = workload(hard=30)
    run = Timed(runtime.backend("eager").lower(w, threads=1), w)
    found = compared([("net", run)], seconds=0)["net"].latency
    assert (found.over, found.n) == ("inputs", 120)
    assert found.quantiles["p50"] < found.value < found.quantiles["p90"]
    between = (found.value + found.quantiles["p90"]) / 2
    mean, tail = budget.parse([f"latency <= {between} s", f"latency.p90 <= {between} s"])
    assert mean.judge(mean.pick({"latency": found})).met
    assert not tail.judge(tail.pick({"latency": found})).met


def test_passes_pair_subjects_and_begin_without_memory():
    w = workload(hard=110)
    lower = runtime.backend("eager").lower
    deep, plain = lower(w, threads=1), lower(workload(hard=0), threads=1)
    assert deep.varies == varies(w.model) == "hard inputs take more layers"
    calls = [((x,), {}) for x in w.population[:20]]
    c = passes([("deep", Timed(deep, w)), ("same", Timed(deep, w))], calls, seconds=0)
    assert deep.model.ran == 20
    assert 0.5 < c["same"].ratio.value < 2
    with pytest.raises(InputError, match="no inputs"):
        passes([("plain", Timed(plain, w))], [], seconds=0)
    forget(deep.model)
    assert deep.model.ran == 0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "inductor", "native"])
def test_backends_that_compile_one_program_say_why_not(name):
    (why,) = runtime.backend(name).supports(workload(), None)
    assert "hard inputs take more layers" in why

"""Loops around a model: what a run computes, and what is refused."""

from itertools import pairwise

import pytest
import torch
from loop_nets import Decoder, Denoiser, Filter, ran
from torch import nn

from paredown import Workload
from paredown.errors import CaptureError, InputError, TargetError
from paredown.graph.capture import capture
from paredown.runs import DDIM, Generate, Sample, Stream
from paredown.targets import validate


def seeded(cls, **settings):
    torch.manual_seed(0)
    return cls(**settings).eval()


def prompt(batch=2, length=5):
    return torch.randint(0, 32, (batch, length), generator=torch.Generator().manual_seed(1))


def generating(new_tokens=6, **settings):
    return Workload(seeded(Decoder, **settings), (prompt(),), loop=Generate(new_tokens))


def streaming(chunk=8):
    x = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    return Workload(seeded(Filter), (x,), loop=Stream(chunk, axis=2))


def sampling(steps=5):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    return Workload(seeded(Denoiser), (x,), loop=Sample(DDIM(steps)))


ALL = {"generate": generating, "stream": streaming, "sample": sampling}


@pytest.mark.parametrize("whole", [True, False])
def test_generation_with_a_state_equals_reading_the_whole_text_again(whole):
    w = generating(whole=whole)
    tokens = w.inputs[0]
    for _ in range(w.loop.new_tokens):
        with torch.inference_mode():
            logits, _ = w.model(tokens)
        last = logits[:, -1] if whole else logits
        tokens = torch.cat([tokens, last.argmax(-1, keepdim=True)], 1)
    assert torch.equal(w.call(), tokens[:, 5:])


def test_judged_logits_follow_the_reference_tokens():
    w = generating()
    want = w.judged()
    assert torch.equal(want["logits"].argmax(-1), w.call())
    other = generating().model
    with torch.no_grad():
        other.head.bias.copy_(torch.randn(32, generator=torch.Generator().manual_seed(5)))
        free = w.judged(call=other)["logits"]
        led = w.judged(call=other, like=want)["logits"]
    assert torch.equal(free[:, 0], led[:, 0])
    assert not torch.equal(free.argmax(-1), want["logits"].argmax(-1))
    # Fed the same tokens, the two differ by nothing but the head's bias.
    off = led - want["logits"] - other.head.bias + w.model.head.bias
    assert off.abs().max() < 1e-5


@pytest.mark.parametrize("chunk", [1, 8, 32])
def test_a_stream_equals_the_whole_stretch(chunk):
    w = streaming(chunk)
    with torch.inference_mode():
        whole, _ = w.model(w.inputs[0])
    assert torch.allclose(w.call(), whole, atol=1e-6)


def test_ddim_with_the_true_noise_finds_the_clean_sample():
    ddim = DDIM(10)
    clean, noise = torch.randn(2, 4), torch.randn(2, 4)
    kept = ddim.kept(ddim.timesteps[0])
    x = kept**0.5 * clean + (1 - kept) ** 0.5 * noise
    for t in ddim.timesteps:
        x = ddim.step(noise, t, x)
    assert torch.allclose(x, clean, atol=1e-4)
    assert len(ddim.timesteps) == 10
    assert ddim.timesteps[-1] == 0


def test_a_scheduler_of_another_library_is_taken():
    class Theirs:
        timesteps = torch.tensor([2, 1, 0])

        def step(self, prediction, t, x):
            return type("Out", (), {"prev_sample": x - 0.1 * prediction})()

    w = sampling()
    w.loop = Sample(Theirs())
    x = w.inputs[0]
    with torch.inference_mode():
        for t in (2, 1, 0):
            x = x - 0.1 * w.model(x, torch.full((3,), t))
    assert torch.equal(w.call(), x)


@pytest.mark.parametrize("run", ALL)
def test_capture_is_the_real_run(run):
    w = ALL[run]()
    fake, real = capture(w), ran(w)
    assert [n.op for n in fake.work_nodes()] == [n.op for n in real.work_nodes()]
    assert fake.macs == real.macs > 0
    assert fake.unpriced == []
    assert "captured whole" in fake.notes[0]


def test_macs_of_a_generation_by_hand():
    batch, length, new, width, vocabulary = 2, 5, 6, 16, 32
    graph = capture(generating(new))
    per_token = width * (3 * width) + width * width + width * vocabulary
    tokens = length + new - 1
    # q k^T and attention times v: a query of the prompt meets all its keys, a later one all so far.
    met = length * length + sum(length + i for i in range(1, new))
    assert graph.macs == batch * (tokens * per_token + 2 * met * width)
    by_phase = {p: sum(n.macs or 0 for n in graph.nodes if n.phase == p) for p in Generate.phases}
    assert by_phase["prefill"] == batch * (length * per_token + 2 * length * length * width)


def test_the_memory_timeline_grows_with_the_cache():
    from paredown.graph.liveness import liveness

    w = generating(12)
    graph = capture(w)
    live = dict(liveness(graph).timeline)
    ends = [n.index for n in graph.nodes if n.op == "aten::argmax"]
    grown = [live[i] for i in ends]
    keys_and_values = 2 * 2 * 16 * 4  # batch x width x two x float32, for one more token
    token = 2 * 8  # int64 of the batch, kept for the result
    steps = {b - a for a, b in pairwise(grown[1:])}
    assert steps == {keys_and_values + token}


def test_a_loop_may_be_named_by_run_alone_where_it_says_enough():
    assert Workload(Decoder(), (prompt(),), run="generate").loop == Generate(16)
    assert generating().run == "generate"
    with pytest.raises(InputError, match=r"needs loop=Stream"):
        Workload(Filter(), run="stream")
    with pytest.raises(InputError, match="contradict"):
        Workload(Filter(), run="sample", loop=Stream(8))


@pytest.mark.parametrize(
    ("workload", "why"),
    [
        (
            lambda: Workload(nn.Linear(4, 4), (torch.ones(1, 4),), run="generate"),
            "takes no `state`",
        ),
        (lambda: Workload(Decoder(), (torch.ones(5),), run="generate"), "prompt's tokens"),
        (lambda: Workload(nn.Linear(4, 4), (torch.ones(1, 4),), loop=Stream(2)), "no `state`"),
        (lambda: Workload(Filter(), (torch.ones(1, 4, 9),), loop=Stream(4, 2)), "do not divide 9"),
        (lambda: Workload(Filter(), (torch.ones(1, 4, 8),), loop=Stream(4, 3)), "axis 3"),
        (lambda: Workload(Denoiser(), (torch.ones(1, 8),), loop=Sample(object())), "timesteps"),
        (lambda: Workload(nn.Linear(4, 4), (torch.ones(1, 4),), loop=Sample(DDIM())), "time step"),
    ],
)
def test_what_cannot_be_run_so_is_refused_in_one_line(workload, why):
    w = workload()
    with pytest.raises(CaptureError, match=why) as refused:
        capture(w)
    assert "\n" not in str(refused.value)
    with pytest.raises(TargetError, match=why):
        validate(w)


def test_a_forward_that_returns_no_state_is_named():
    class Forgetful(Decoder):
        def forward(self, tokens, state=None):
            return super().forward(tokens, state)[0]

    with pytest.raises(InputError, match=r"\(output, state\)"):
        validate(Workload(seeded(Forgetful), (prompt(),), run="generate"))


@pytest.mark.parametrize("bad", [lambda: Generate(0), lambda: Stream(0), lambda: DDIM(0)])
def test_empty_loops_are_refused(bad):
    with pytest.raises(InputError, match="must be"):
        bad()


@pytest.mark.parametrize("run", ALL)
def test_a_validated_run(run):
    assert validate(ALL[run]()).run == run

"""Hugging Face decoders step as their own ``generate`` does; references say how a folder is run."""

import json
from dataclasses import replace

import pytest
import torch
from loop_nets import ran

transformers = pytest.importorskip("transformers")

from paredown import Workload, runtime, targets  # noqa: E402
from paredown.adapters.hf_run import Asked, split  # noqa: E402
from paredown.cli import main  # noqa: E402
from paredown.errors import TargetError  # noqa: E402
from paredown.graph.capture import capture  # noqa: E402
from paredown.runs import Generate  # noqa: E402
from paredown.runtime.facade import Facade  # noqa: E402
from paredown.runtime.gate import gate  # noqa: E402
from paredown.techniques.quantize.bf16 import BF16  # noqa: E402
from paredown.techniques.quantize.dynamic_int8 import DynamicInt8  # noqa: E402
from paredown.techniques.quantize.weight_only import WeightOnly  # noqa: E402

TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
GQA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **TOKENS,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GQA, max_position_embeddings=64),
    "mistral": lambda: transformers.MistralConfig(**GQA, sliding_window=4, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, **TOKENS
    ),
    "mamba": lambda: transformers.MambaConfig(
        hidden_size=32, num_hidden_layers=2, state_size=4, **TOKENS
    ),
    "t5": lambda: transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **TOKENS
    ),
}


def generating(family, new_tokens=5, *, padded=False):
    torch.manual_seed(0)
    config = CONFIGS[family]()
    auto = transformers.AutoModelForSeq2SeqLM if family == "t5" else None
    model = (auto or transformers.AutoModelForCausalLM).from_config(config).eval()
    kwargs = {"input_ids": torch.randint(3, 64, (2, 7))}
    if padded:
        kwargs["attention_mask"] = torch.ones(2, 7, dtype=torch.int64)
        kwargs["attention_mask"][0, :3] = 0
    if family == "t5":
        kwargs["decoder_input_ids"] = torch.zeros(2, 1, dtype=torch.int64)
    return Workload(model, kwargs=kwargs, loop=Generate(new_tokens), name=family)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_tokens_are_those_of_the_librarys_own_generate(family, padded):
    w = generating(family, padded=padded)
    ids = w.kwargs["input_ids"]
    mask = w.kwargs.get("attention_mask", torch.ones_like(ids))
    with torch.inference_mode():
        want = w.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=5, min_new_tokens=5
        )
    assert torch.equal(w.call(), want[:, -5:])


@pytest.mark.parametrize("family", CONFIGS)
def test_capture_is_the_real_run(family):
    w = generating(family)
    fake, real = capture(w), ran(w)
    assert [n.op for n in fake.work_nodes()] == [n.op for n in real.work_nodes()]
    assert fake.macs == real.macs > 0
    assert fake.unpriced == []
    assert len(fake.notes) == 1


@pytest.mark.parametrize("technique", [BF16(), WeightOnly(), DynamicInt8()], ids=lambda t: t.name)
def test_a_rewritten_decoder_generates_as_its_own_torch_model(technique):
    w = generating("llama")
    change = technique.apply(w, technique.sites(w, capture(w)))
    executable = runtime.backend("eager").lower(change.workload, threads=1)
    gate(executable, change.workload).demand()
    assert executable(**w.kwargs).shape == (2, 5)
    assert len(executable.laps) == 5
    if technique.name == "bf16":
        # The cache is kept in bf16 between steps, half the bytes of the original's.
        grown = _cache_bytes(change.workload)
        assert grown == _cache_bytes(w) // 2


def _cache_bytes(w):
    with torch.inference_mode():
        out = w.model(**w.kwargs, use_cache=True)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)


@pytest.mark.parametrize("family", ["llama", "mamba", "t5"])
def test_a_facade_is_run_like_the_model_it_stands_for(family):
    w = generating(family)
    facade = Facade(runtime.backend("eager").lower(w, threads=1), w)
    seen = replace(w, model=facade)
    assert targets.validate(seen) is seen
    assert torch.equal(seen.call(), w.call())
    assert not list(facade.parameters())


def test_other_backends_say_why_not():
    w = generating("llama")
    for name in ("onnxruntime", "openvino"):
        assert "'generate'" in runtime.backend(name).supports(w, None)[0]
    for name in ("eager", "inductor"):
        assert runtime.backend(name).supports(w, None) == []


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "llama").mkdir()
    config = CONFIGS["llama"]()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_reference_says_how_it_is_run(folder):
    text = targets.run_as(f"hf:{folder}", run="generate", prompt_tokens=8, new_tokens=3)
    assert text == f"hf:{folder}?run=generate,prompt_tokens=8,new_tokens=3"
    assert split(text) == (str(folder), Asked("generate", 8, 3))
    w = targets.resolve(text, random_weights=True)
    assert w.run == "generate"
    assert w.source.ref == text
    assert w.kwargs["input_ids"].shape == (1, 8)
    assert w.call().shape == (1, 3)
    longer = targets.run_as(text, new_tokens=4)
    assert targets.resolve(longer, random_weights=True).loop == Generate(4)
    # Without a stated prompt as many tokens as fit, at most 128.
    free = targets.resolve(f"hf:{folder}?run=generate", random_weights=True)
    assert free.kwargs["input_ids"].shape == (1, 64 - 16)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("run=sample", "forward or generate"),
        ("new_tokens=4", "belong to run=generate"),
        ("run=generate,new_tokens=0", "whole number from 1"),
        ("run=generate,tokens=4", "unknown setting 'tokens=4'"),
        ("run=generate,prompt_tokens=60,new_tokens=5", "exceed the model's 64 positions"),
    ],
)
def test_a_wrong_reference_is_one_line(folder, query, why):
    with pytest.raises(TargetError, match=why) as refused:
        targets.resolve(f"hf:{folder}?{query}", random_weights=True)
    assert "\n" not in str(refused.value)


def test_a_model_without_a_head_cannot_generate(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    with pytest.raises(TargetError, match="LlamaModel cannot generate"):
        targets.resolve(f"hf:{folder}?run=generate", random_weights=True)


def test_profile_on_the_command_line(folder, capfd):
    options = ["--random-weights", "--run", "generate", "--prompt-tokens", "8", "--device", "pi5"]
    assert main(["profile", f"hf:{folder}", *options, "--new-tokens", "3", "--json", "-"]) == 0
    doc = json.loads(capfd.readouterr().out)
    assert doc["run"] == "generate"
    macs = {k: v["value"] for k, v in doc["parts"].items() if k.startswith("macs")}
    assert macs.keys() == {"macs.prefill", "macs.decode"}
    assert sum(macs.values()) == doc["totals"]["macs"]["value"]
    assert doc["parts"]["throughput"]["unit"] == "tokens/s"
    assert {r["phase"] for r in doc["operators"]} == {"prefill", "decode"}


def test_bad_runs_on_the_command_line_exit_2(folder, capfd):
    for argv in (["zoo:mobilenetv2", "--run", "generate"], [f"hf:{folder}", "--run", "stream"]):
        assert main(["profile", *argv, "--random-weights"]) == 2
        assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_steps_are_timed_apart():
    from paredown.measure.compare import Timed, interleave

    w = generating("llama")
    other = replace(w, model=w.copy().model)
    runs = [
        (n, Timed(runtime.backend("eager").lower(x, threads=1), x))
        for n, x in (("a", w), ("b", other))
    ]
    found = interleave(runs, seconds=0.2)["b"]
    figures, ratios = found.figures(), found.ratios()
    whole = figures["latency"].known()
    first, each = figures["latency.first"].known(), figures["latency.per_token"].known()
    assert 0 < first < whole
    assert first + 4 * each == pytest.approx(whole, rel=0.5)
    assert figures["throughput"].unit == "tokens/s"
    assert figures["throughput"].known() == pytest.approx(2 * 5 / whole)
    assert ratios.keys() == figures.keys()

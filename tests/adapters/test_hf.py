"""Hugging Face folders: built, loaded, refused; captured as they really run."""

import json

import pytest
import torch

from paredown.adapters import hf
from paredown.adapters.hf_inputs import example_inputs
from paredown.cost.profile import profile
from paredown.device.device import Device, Level
from paredown.errors import TargetError
from paredown.graph.capture import capture
from paredown.workload import Workload

t = pytest.importorskip("transformers")

TOY = Device(
    name="toy",
    title="toy",
    threads=1,
    how="nominal",
    peak_macs_s={"float32": 1e11},
    elementwise_s=1e10,
    overhead_s={},
    levels=(Level(name="memory", capacity_bytes=1 << 40, read_bytes_s=1e10),),
)

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
EYE = {k: v for k, v in TEXT.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
T5 = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 100}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

SMALL = {
    "llama": lambda: (t.LlamaConfig(**TEXT, num_key_value_heads=2), "LlamaForCausalLM"),
    "bert": lambda: (t.BertConfig(**TEXT), "BertForSequenceClassification"),
    "gpt2": lambda: (
        t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, **IDS),
        "GPT2LMHeadModel",
    ),
    "mixtral": lambda: (
        t.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4),
        "MixtralForCausalLM",
    ),
    "mamba": lambda: (
        t.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=8),
        "MambaForCausalLM",
    ),
    "vit": lambda: (t.ViTConfig(**EYE), "ViTForImageClassification"),
    "t5": lambda: (t.T5Config(**T5), "T5ForConditionalGeneration"),
    "clip": lambda: (
        t.CLIPConfig(
            text_config=TEXT | IDS | {"projection_dim": 16},
            vision_config=EYE | {"projection_dim": 16},
            projection_dim=16,
        ),
        "CLIPModel",
    ),
    "wav2vec2": lambda: (
        t.Wav2Vec2Config(
            **(TEXT | {"vocab_size": 32}),
            conv_dim=(16,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
        "Wav2Vec2ForCTC",
    ),
}


def small(name):
    config, cls = SMALL[name]()
    config.architectures = [cls]
    return config


def workload(name):
    torch.manual_seed(0)
    model = hf.build(small(name), meta=False)
    return Workload(
        model, kwargs=example_inputs(model, length=None if name == "wav2vec2" else 16), name=name
    )


@pytest.fixture
def folder(tmp_path):
    config = small("bert")
    model = hf.build(config, meta=False)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    return tmp_path


@pytest.mark.parametrize("name", sorted(SMALL))
def test_captured_operators_are_those_of_a_real_run(name):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        seen: list = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    w = workload(name)
    g = capture(w)
    Names.seen = []
    with torch.no_grad(), Names():
        w.model(*w.inputs, **w.kwargs)
    assert [n.op for n in g.nodes] == Names.seen
    assert not g.notes
    assert not g.unpriced


def test_products_of_a_decoder_by_hand():
    g = capture(workload("llama"))
    tokens, d, kv, ff, vocabulary = 16, 32, 16, 64, 100
    layer = tokens * (2 * d * d + 2 * d * kv + 3 * d * ff) + 2 * 4 * tokens * tokens * 8
    assert g.macs == 2 * layer + tokens * d * vocabulary


def test_caches_are_outputs():
    g = capture(workload("llama"))
    shapes = [g.tensors[o].shape for o in g.outputs]
    assert shapes == [(1, 16, 100)] + [(1, 2, 16, 8)] * 4


def test_a_saved_folder_loads_and_carries_its_tokenizer(folder):
    w = hf.hf_workload(folder)
    assert type(w.model).__name__ == "BertForSequenceClassification"
    assert not w.model.training
    assert [c.rsplit("/", 1)[1] for c in w.carry] == ["vocab.txt"]
    assert w.call().logits.shape == (1, 2)
    assert w.source.ref == f"hf:{folder}"


def test_a_config_is_enough_with_random_weights(tmp_path):
    small("vit").save_pretrained(tmp_path)
    w = hf.hf_workload(tmp_path, random_weights=True)
    assert w.call().logits.shape == (1, 2)
    assert w.source.random_weights
    with pytest.raises(TargetError, match="--random-weights"):
        hf.hf_workload(tmp_path)


def test_pickled_weights_are_refused_naming_the_conversion(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(TargetError, match=r"pytorch_model.bin.*save_pretrained"):
        hf.hf_workload(folder)


def test_remote_code_is_refused_before_anything_is_imported(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    for random_weights in (False, True):
        with pytest.raises(TargetError, match="remote code"):
            hf.hf_workload(folder, random_weights)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "no-such-model"}', "{}"])
def test_a_broken_config_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(TargetError) as e:
        hf.hf_workload(tmp_path, random_weights=True)
    assert "\n" not in str(e.value)


def test_missing_config_and_truncated_weights(tmp_path, folder):
    with pytest.raises(TargetError, match=r"no config\.json"):
        hf.hf_workload(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TargetError, match="cannot be loaded"):
        hf.hf_workload(folder)


def test_a_huge_decoder_is_priced_without_weights():
    import resource
    import time

    config = t.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model = hf.build(config)
    assert next(model.parameters()).device.type == "meta"
    doc = profile(Workload(model, kwargs=example_inputs(model)), TOY)
    assert time.perf_counter() - start < 60
    assert doc.totals.params.value == 70_553_706_496
    assert doc.totals.peak_bytes.value > 2 * 70e9
    assert min(doc.priced_share.operators, doc.priced_share.bytes) >= 0.99
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2_000_000  # KiB

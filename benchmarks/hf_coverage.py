"""Profile Hugging Face architectures with random weights: is every operator and byte priced?

Each network is built from its configuration class in code, at the size it was published at, on
``meta`` (no weights are allocated), captured, and priced on a device.

    python benchmarks/hf_coverage.py [--device NAME] [--only bert,vit] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

RESULTS = Path(__file__).parent / "results" / "hf_coverage.json"
THRESHOLD = 0.99


def _named(cls: str, config: Any) -> Any:
    config.architectures = [cls]
    return config


def networks() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Name -> (family, function that makes its configuration)."""
    import transformers as t

    def of(cls: str, config: Callable[..., Any], **settings: Any) -> Callable[[], Any]:
        if cls.endswith("ForImageClassification"):
            settings.setdefault("num_labels", 1000)
        return lambda: _named(cls, config(**settings))

    resnet50 = t.ResNetConfig()
    llama70 = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "dtype": "bfloat16",
    }
    detr_backbone = {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": resnet50,
    }
    return {
        "vit-base": ("image", of("ViTForImageClassification", t.ViTConfig)),
        "deit-base": ("image", of("DeiTForImageClassificationWithTeacher", t.DeiTConfig)),
        "beit-base": ("image", of("BeitForImageClassification", t.BeitConfig)),
        "swin-tiny": ("image", of("SwinForImageClassification", t.SwinConfig)),
        "swinv2-tiny": (
            "image",
            of("Swinv2ForImageClassification", t.Swinv2Config, image_size=256, window_size=8),
        ),
        "convnext-tiny": ("image", of("ConvNextForImageClassification", t.ConvNextConfig)),
        "convnextv2-tiny": ("image", of("ConvNextV2ForImageClassification", t.ConvNextV2Config)),
        "resnet-50": ("image", of("ResNetForImageClassification", t.ResNetConfig)),
        "regnet-y-040": ("image", of("RegNetForImageClassification", t.RegNetConfig)),
        "mobilenet-v1": ("image", of("MobileNetV1ForImageClassification", t.MobileNetV1Config)),
        "mobilenet-v2": ("image", of("MobileNetV2ForImageClassification", t.MobileNetV2Config)),
        "mobilevit": ("image", of("MobileViTForImageClassification", t.MobileViTConfig)),
        "efficientnet-b7": (
            "image",
            of("EfficientNetForImageClassification", t.EfficientNetConfig),
        ),
        "dinov2-base": ("image", of("Dinov2Model", t.Dinov2Config)),
        "detr-resnet-50": (
            "detection",
            of("DetrForObjectDetection", t.DetrConfig, **detr_backbone),
        ),
        "yolos-base": ("detection", of("YolosForObjectDetection", t.YolosConfig)),
        "segformer-b0": ("segmentation", of("SegformerForSemanticSegmentation", t.SegformerConfig)),
        "maskformer-swin": (
            "segmentation",
            of("MaskFormerForInstanceSegmentation", t.MaskFormerConfig),
        ),
        "mask2former-swin": (
            "segmentation",
            of("Mask2FormerForUniversalSegmentation", t.Mask2FormerConfig),
        ),
        "dpt-large": ("depth", of("DPTForDepthEstimation", t.DPTConfig)),
        "bert-base": ("encoder", of("BertForMaskedLM", t.BertConfig)),
        "roberta-base": (
            "encoder",
            of(
                "RobertaForSequenceClassification",
                t.RobertaConfig,
                vocab_size=50265,
                max_position_embeddings=514,
            ),
        ),
        "deberta-v2-xlarge": (
            "encoder",
            of(
                "DebertaV2ForSequenceClassification",
                t.DebertaV2Config,
                relative_attention=True,
                pos_att_type=["c2p", "p2c"],
            ),
        ),
        "electra-small": ("encoder", of("ElectraForPreTraining", t.ElectraConfig)),
        "albert-xxlarge": ("encoder", of("AlbertForMaskedLM", t.AlbertConfig)),
        "distilbert": ("encoder", of("DistilBertForMaskedLM", t.DistilBertConfig)),
        "modernbert-base": ("encoder", of("ModernBertForMaskedLM", t.ModernBertConfig)),
        "gpt2": ("decoder", of("GPT2LMHeadModel", t.GPT2Config)),
        "opt-125m": ("decoder", of("OPTForCausalLM", t.OPTConfig)),
        "bloom-560m": (
            "decoder",
            of("BloomForCausalLM", t.BloomConfig, hidden_size=1024, n_layer=24, n_head=16),
        ),
        "llama-2-7b": ("decoder", of("LlamaForCausalLM", t.LlamaConfig)),
        "llama-3-70b": ("decoder", of("LlamaForCausalLM", t.LlamaConfig, **llama70)),
        "mistral-7b": ("decoder", of("MistralForCausalLM", t.MistralConfig)),
        "qwen2-7b": (
            "decoder",
            of(
                "Qwen2ForCausalLM",
                t.Qwen2Config,
                hidden_size=3584,
                intermediate_size=18944,
                num_hidden_layers=28,
                num_attention_heads=28,
                num_key_value_heads=4,
            ),
        ),
        "gemma-7b": ("decoder", of("GemmaForCausalLM", t.GemmaConfig)),
        "phi-1.5": ("decoder", of("PhiForCausalLM", t.PhiConfig)),
        "falcon-7b": ("decoder", of("FalconForCausalLM", t.FalconConfig)),
        "mixtral-8x7b": ("mixture of experts", of("MixtralForCausalLM", t.MixtralConfig)),
        "qwen2-moe-a2.7b": ("mixture of experts", of("Qwen2MoeForCausalLM", t.Qwen2MoeConfig)),
        "olmoe-1b-7b": (
            "mixture of experts",
            of("OlmoeForCausalLM", t.OlmoeConfig, intermediate_size=1024),
        ),
        "mamba-130m": ("state space", of("MambaForCausalLM", t.MambaConfig, num_hidden_layers=24)),
        "mamba2-2.7b": (
            "state space",
            of(
                "Mamba2ForCausalLM",
                t.Mamba2Config,
                hidden_size=2560,
                num_heads=80,
                n_groups=1,
                vocab_size=50288,
            ),
        ),
        "rwkv-169m": (
            "state space",
            of("RwkvForCausalLM", t.RwkvConfig, hidden_size=768, num_hidden_layers=12),
        ),
        "t5-small": ("encoder-decoder", of("T5ForConditionalGeneration", t.T5Config)),
        "bart-large": ("encoder-decoder", of("BartForConditionalGeneration", t.BartConfig)),
        "pegasus-large": (
            "encoder-decoder",
            of("PegasusForConditionalGeneration", t.PegasusConfig, max_position_embeddings=1024),
        ),
        "whisper-tiny": ("audio", of("WhisperForConditionalGeneration", t.WhisperConfig)),
        "wav2vec2-base": ("audio", of("Wav2Vec2ForCTC", t.Wav2Vec2Config)),
        "hubert-base": ("audio", of("HubertForCTC", t.HubertConfig)),
        "ast-base": ("audio", of("ASTForAudioClassification", t.ASTConfig)),
        "clip-vit-b32": ("contrastive", of("CLIPModel", t.CLIPConfig)),
        "siglip-base": ("contrastive", of("SiglipModel", t.SiglipConfig)),
        "perceiver-language": ("other", of("PerceiverForMaskedLM", t.PerceiverConfig)),
        "fnet-base": ("transform", of("FNetForMaskedLM", t.FNetConfig)),
    }


def device(name: str | None) -> Any:
    """A catalogued device, this machine by default."""
    if name is not None:
        from paredown.device import load

        return load(name)
    from paredown.measure.calibrate import this

    return this()


def profile_one(config: Any, on: Any) -> dict[str, Any]:
    """Build, capture and price one network; a row for the table."""
    from paredown.adapters.hf import build
    from paredown.adapters.hf_inputs import example_inputs
    from paredown.cost.profile import profile
    from paredown.workload import Workload

    start = time.perf_counter()
    model = build(config, meta=True)
    workload = Workload(model, kwargs=example_inputs(model), name=type(model).__name__)
    doc = profile(workload, on)
    return {
        "model": type(model).__name__,
        "inputs": {i.name: i.shape for i in doc.inputs},
        "params": doc.totals.params.value,
        "macs": doc.totals.macs.value,
        "peak_bytes": doc.totals.peak_bytes.value,
        "operators": len(doc.operators),
        "priced_operators": doc.priced_share.operators,
        "priced_bytes": doc.priced_share.bytes,
        "unpriced": doc.unpriced,
        "seconds": round(time.perf_counter() - start, 2),
        "notes": doc.notes,
    }


def main() -> int:
    """Run the table; exit 1 when a network failed or is priced below the threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device")
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    on = device(args.device)
    only = [n for n in args.only.split(",") if n]
    rows: dict[str, dict[str, Any]] = {}
    for name, (family, make) in networks().items():
        if only and name not in only:
            continue
        try:
            rows[name] = {"family": family, **profile_one(make(), on)}
        except Exception as e:
            rows[name] = {"family": family, "error": f"{type(e).__name__}: {e}"}
        print(_line(name, rows[name]), flush=True)
    good = [n for n, r in rows.items() if _good(r)]
    print(f"{len(good)} of {len(rows)} networks priced to {THRESHOLD:.0%} of operators and bytes")
    if not only:
        _write(args.out, on, rows, len(good))
    return 0 if len(good) == len(rows) else 1


def _good(row: dict[str, Any]) -> bool:
    return "error" not in row and min(row["priced_operators"], row["priced_bytes"]) >= THRESHOLD


def _line(name: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{name:22} FAILED {row['error'][:200]}"
    return (
        f"{name:22} {row['params'] / 1e6:9.1f} M  {row['macs'] / 1e9:9.2f} GMAC  "
        f"{row['operators']:6} ops  {row['priced_operators']:6.1%} {row['priced_bytes']:6.1%}  "
        f"{row['seconds']:6.1f} s  {' '.join(row['unpriced'])}  {' '.join(row['notes'])[:120]}"
    )


def _write(out: Path, on: Any, rows: dict[str, dict[str, Any]], good: int) -> None:
    import torch
    import transformers

    from paredown.measure.fingerprint import fingerprint

    document = {
        "schema": 1,
        "command": "python benchmarks/hf_coverage.py",
        "threshold": THRESHOLD,
        "priced": good,
        "of": len(rows),
        "device": on.name,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "fingerprint": fingerprint(probe=False).model_dump(),
        "networks": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".tmp")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(out)
    print(f"written to {out}")


if __name__ == "__main__":
    sys.exit(main())

"""Running claim cards and recording what they find: ``pare reproduce``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from paredown.errors import InputError, ParedownError, UnknownName
from paredown.papers import findings
from paredown.papers._catalogue import entry
from paredown.papers.card import Card, Progress, Scale
from paredown.result import CardsDoc, Finding

# key -> module:class under papers/cards, imported only to run it.
CARDS = {
    "mobilenetv2": "networks:MobileNetV2Card",
    "vovnet": "networks:VoVNetCard",
    "quant-whitepaper": "numeric:QuantWhitepaperCard",
    "fast-scaling": "scaling:FastScalingCard",
    "amp-carbon": "energy:AmpCarbonCard",
    "tune-mode-convbn": "finetuning:TuneModeCard",
    "ws-bcn": "micro_batches:WsBcnCard",
    "tvconv": "spatial:TVConvCard",
    "pflayer": "spatial:PfLayerCard",
    "slab": "transformers:SlabCard",
    "e2gc": "groups:E2gcCard",
    "hourglass-mlp": "shapes:HourglassCard",
    "gtp-vit": "fewer_tokens:GtpCard",
    "shallow-again": "broad:ShallowAgainCard",
    "apriori-conv": "waves:AprioriConvCard",
    "pychop": "number_formats:PychopCard",
    "accllm": "long_context:AccLLMCard",
    "llm-int8": "language:LLMInt8Card",
    "qlora": "adapters:QLoRACard",
    "mst-bnn": "binary:MstBnnCard",
    "qfx": "fixed_points:QFXCard",
    "quantized-distillation": "quantized_students:QuantizedDistillationCard",
    "maestro-lod": "ranks:MaestroCard",
    "scalekd": "teachers:ScaleKDCard",
    "n2n-learning": "compression:N2NCard",
    "repquant": "few_bits:RepQuantCard",
    "vit-quant-survey": "vit_survey:ViTQuantSurveyCard",
    "ghostnetv2": "convnets:GhostNetV2Card",
    "inceptionnext": "convnets:InceptionNeXtCard",
    "simplenet": "convnets:SimpleNetCard",
    "inception-v4": "cells:InceptionV4Card",
    "nasnet": "cells:NASNetCard",
    "unireplknet": "large_kernels:UniRepLKNetCard",
    "overlock": "large_kernels:OverLoCKCard",
    "lsnet": "partial:LSNetCard",
    "patnet": "partial:PATNetCard",
    "metamixer-ffnet": "hybrids:MetaMixerCard",
    "moat": "hybrids:MOATCard",
    "svt": "wavelets:SVTCard",
    "convit": "tokens:ConViTCard",
    "ninformer": "tokens:NiNformerCard",
    "hyperzzw-terminator": "slow_fast:TerminatorCard",
    "p3d-resnet": "clips:P3DCard",
    "h-denseunet": "volumes:HDenseUNetCard",
    "rev-mbconv-unet3d": "volumes:RevMBConvCard",
    "maxim": "restoration:MAXIMCard",
    "drct": "restoration:DRCTCard",
    "dico": "generation:DiCoCard",
    "leyolo": "detection:LeYOLOCard",
    "vitok": "tokenizers:ViTokCard",
    "mcunetv2": "patches:MCUNetV2Card",
    "multikernelbench": "kernel_bench:MultiKernelBenchCard",
    "hpctranscompile": "transpiling:HPCTransCompileCard",
    "neuri": "fuzzing:NeuRICard",
    "cosma": "memory:CosmaCard",
    "deepseek-v3-hw": "nodes:DeepSeekHardwareCard",
    "sn40l": "three_tiers:SN40LCard",
    "deepspeed-inference": "serving:DeepSpeedCard",
    "attention-offload": "offloading:AttentionOffloadCard",
    "draco": "arrays:DracoCard",
    "intar": "fpga:InTARCard",
    "fast-sparse-convnets": "sparse_kernels:FastSparseConvNetsCard",
    "spmm-vnni": "sparse_kernels:SpmmVnniCard",
    "flash-llm": "flash_llm:FlashLlmCard",
    "convfirst": "fusion:ConvFirstCard",
    "lpvit": "block_sparsity:LPViTCard",
    "bdwp-sat": "sparse_training:BDWPCard",
    "consensus-subnet": "consensus_nets:ConsensusCard",
    "archgym": "gymnasium:ArchGymCard",
    "nasaic": "coexploration:NasaicCard",
    "pulsedl-ii": "pulses:PulseDLCard",
    "mlir-text-cost": "texts:MlirTextCard",
    "onnx-net": "readers:OnnxNetCard",
    "beyond-inference": "pipelines:BeyondInferenceCard",
    "cbnet": "early:CBNetCard",
    "dual-complementary-cnn": "pairs:DualCard",
    "acm": "modules:ACMCard",
    "dit-routing": "routing:TokenRoutingCard",
    "bit-level-scaling-vgen": "bit_scaling:BitScalingCard",
}


def card_keys() -> list[str]:
    """Keys of the papers that have a claim card."""
    return sorted(CARDS)


def card(key: str) -> Card:
    """A paper's card; raises ``UnknownName`` for no such paper, ``InputError`` for no card yet."""
    entry(key)
    if key not in CARDS:
        raise InputError(f"{key} has no claim card yet; cards: {', '.join(card_keys())}")
    module, _, cls = CARDS[key].partition(":")
    return getattr(importlib.import_module(f"paredown.papers.cards.{module}"), cls)()


def reproduce(
    keys: Iterable[str],
    scale: str = "quick",
    progress: Progress | None = None,
    *,
    folder: Path | None = findings.FOLDER,
) -> CardsDoc:
    """Run the cards of these papers and record each finding in ``folder`` (None: do not record).

    All keys are checked before any card runs. Raises ``UnknownName``, ``InputError`` for a paper
    without a card or an unknown scale, ``ParedownError`` when an experiment could not run.
    """
    if scale not in findings.SCALES:
        raise UnknownName("scale", scale, list(findings.SCALES))
    chosen = [card(key) for key in dict.fromkeys(keys)]
    if not chosen:
        raise InputError(f"name at least one paper with a claim card: {', '.join(card_keys())}")
    say = progress or (lambda text: None)
    if folder is not None and not findings.writable(folder):
        say(f"{folder} cannot be written: findings are printed, not recorded")
        folder = None
    from paredown.measure.fingerprint import fingerprint

    machine = fingerprint()
    done: list[Finding] = []
    for one in chosen:
        say(f"{one.key}: {one.claim}")
        try:
            found = one.run(_scale(scale), lambda text, key=one.key: say(f"{key}: {text}"), machine)
        except ParedownError as e:
            raise ParedownError(f"the card of {one.key} could not run: {e}") from e
        if folder is not None:
            findings.write(found, folder)
        say(f"{one.key}: {found.verdict} ({found.seconds:.0f} s): {found.why}")
        done.append(found)
    return CardsDoc(cards=done)


def _scale(scale: str) -> Scale:
    return "full" if scale == "full" else "quick"

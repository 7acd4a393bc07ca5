"""Small networks of each family that the numeric techniques meet, as workloads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paredown.workload import Workload


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise, project, each normalised."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(c, 4 * c, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4 * c)
        self.depthwise = nn.Conv2d(4 * c, 4 * c, 3, padding=1, groups=4 * c, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * c)
        self.project = nn.Conv2d(4 * c, c, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.expand(x)))
        y = self.act(self.bn2(self.depthwise(y)))
        return x + self.bn3(self.project(y))


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)
        )
        self.blocks = nn.Sequential(Inverted(16), Inverted(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """A pre-norm transformer block over fused attention."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.fc1, self.fc2 = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        parts = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.proj(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.pos = nn.Parameter(torch.randn(1, 16, 32) * 0.1)
        self.blocks = nn.Sequential(Attention(32, 4), Attention(32, 4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        return self.head(self.blocks(x).mean(1))


def settle(model: nn.Module) -> nn.Module:
    """Statistics and gains that a fold must not lose."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.3, 2)
            if m.affine:
                m.weight.data.uniform_(0.5, 2)
                m.bias.data.uniform_(-1, 1)
    return model.eval()


def mobile() -> Workload:
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 32, 32) for _ in range(4)]
    return Workload(settle(Mobile()), (data[0],), name="mobile", calibration=data)


def vit() -> Workload:
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    return Workload(ViT().eval(), (data[0],), name="vit", calibration=data)


def bert() -> Workload:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=100,
    )
    ids = torch.randint(0, 100, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Workload(hf.BertModel(config).eval(), (), inputs, name="bert")


def gpt2() -> Workload:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.GPT2Config(
        n_embd=64,
        n_layer=2,
        n_head=4,
        vocab_size=100,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    ids = torch.randint(0, 100, (2, 9))
    model = hf.GPT2LMHeadModel(config).eval()
    return Workload(model, (ids,), {"use_cache": False}, name="gpt2")


def llama() -> Workload:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=100,
        tie_word_embeddings=False,
    )
    ids = torch.randint(0, 100, (2, 9))
    kwargs = {"input_ids": ids, "use_cache": False}
    return Workload(hf.LlamaForCausalLM(config).eval(), (), kwargs, name="llama")


NETS = {"mobile": mobile, "vit": vit, "bert": bert, "gpt2": gpt2, "llama": llama}


def first(output: object) -> Tensor:
    """The main output tensor of any of these networks."""
    return output if isinstance(output, Tensor) else output[0]


def error(want: Tensor, got: Tensor) -> float:
    """Relative error in norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())

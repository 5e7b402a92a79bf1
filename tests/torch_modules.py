"""Modules of torch, Hugging Face and peft with random weights, each with a batch of inputs."""

import torch
from torch import nn


class Residual(nn.Module):
    """A convolutional block that works in place, as those of torchvision do."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 2, 3, padding=1)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        h = self.second(self.relu(self.norm(self.first(x))))
        h += x
        return self.head(self.relu(h).mean((2, 3)))


class Encoder(nn.Module):
    """A transformer encoder over tokens, whose padding is masked."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Embedding(5, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        return self.head(self.encoder(h, src_key_padding_mask=x == 0).mean(1))


class Attention(nn.Module):
    """Attention by itself, to other inputs, of another width."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=3, vdim=3, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, query, other):
        return self.head(self.attention(query, other, other)[0].mean(1))


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(6 if layer.bidirectional else 3, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Tied(nn.Module):
    """A table that serves as the head too."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.table(x))).mean(1))


class Mixed(nn.Module):
    """Frozen parts, a plain tensor, a bag of rows, and several inputs by keyword."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 4, mode="mean")
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.head = nn.Linear(4, 3)
        self.register_buffer("shift", torch.linspace(-1, 1, 4))
        self.plain = torch.linspace(0, 1, 4)

    def forward(self, tokens, values):
        h = self.bag(tokens) + torch.tanh(self.frozen(values) - self.shift) * self.plain
        return self.head(h)


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def lenet():
    convolutions = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3))


def normed():
    module = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)
    )
    module(torch.randn(20, 3))  # moves the running statistics
    return module


def values(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens(*shape, num):
    return torch.randint(num, shape, generator=torch.Generator().manual_seed(0))


NUM = 12
MODULES = {
    "MLP": (mlp, values(NUM, 3)),
    "LeNet": (lenet, values(NUM, 1, 8, 8)),
    "BatchNorm": (normed, values(NUM, 3)),
    "residual": (Residual, values(NUM, 2, 4, 4)),
    "encoder": (Encoder, tokens(NUM, 5, num=11) * torch.tensor([1, 1, 1, 1, 0])),
    "attention": (Attention, (values(NUM, 4, 8), values(NUM, 5, 3))),
    "LSTM": (lambda: Recurrent(nn.LSTM(3, 3, 2, batch_first=True)), values(NUM, 4, 3)),
    "GRU": (
        lambda: Recurrent(nn.GRU(3, 3, batch_first=True, bidirectional=True)),
        values(NUM, 4, 3),
    ),
    "RNN": (lambda: Recurrent(nn.RNN(3, 3, batch_first=True, bias=False)), values(NUM, 4, 3)),
    "tied": (Tied, tokens(NUM, 4, num=3)),
    "mixed": (Mixed, {"tokens": tokens(NUM, 4, num=7), "values": values(NUM, 3)}),
}


def made(name: str) -> tuple[nn.Module, object]:
    """Return a module by name, in training mode with weights of its own, and its inputs."""
    torch.manual_seed(1)
    build, inputs = MODULES[name]
    return build(), inputs


# --- Hugging Face ---------------------------------------------------------------------------------

TOKENS = {
    "input_ids": tokens(NUM, 6, num=18) + 2,
    "attention_mask": torch.ones(NUM, 6, dtype=torch.long),
}
TOKENS["attention_mask"][::2, 4:] = 0
_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "num_labels": 3,
    "pad_token_id": 0,
}


def bert():
    import transformers

    config = transformers.BertConfig(**_SIZES)
    return transformers.BertForSequenceClassification(config), TOKENS


def gpt2():
    import transformers

    config = transformers.GPT2Config(
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=8,
        vocab_size=20,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.GPT2ForSequenceClassification(config), TOKENS


def vit():
    import transformers

    sizes = {name: _SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_labels")}
    config = transformers.ViTConfig(
        num_attention_heads=2, intermediate_size=12, image_size=4, patch_size=2, num_channels=1,
        **sizes,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), {"pixel_values": values(NUM, 1, 4, 4)}


def llama():
    import transformers

    config = transformers.LlamaConfig(**_SIZES, num_key_value_heads=1)
    return transformers.LlamaForSequenceClassification(config), TOKENS


def lora():
    import peft

    adapters = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    return peft.get_peft_model(llama()[0], adapters), TOKENS


HUGGING_FACE = {"BERT": bert, "GPT-2": gpt2, "ViT": vit, "Llama": llama, "LoRA": lora}

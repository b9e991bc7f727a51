"""A routing trace of a router that was trained on text: `python -m benchmarks.trained_router TRACE.npz`.

A small mixture-of-experts language model learns to foretell the next word of the standard library's source;
the trace holds the choices of words that it was not trained on. Needs torch, and a GPU to be done in minutes.
The shape is OLMoE's (64 experts, 8 chosen, softmax top-k, a load-balancing loss of 0.01), but thin and short.
With `--gates` the gates and what they were given of those words are kept too, for `benchmarks.gates`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, CONTEXT = 8192, 256
HELD_OUT = 0.1  # of the words, at the end


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write the trace."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trained_router", description=__doc__.split("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="TRACE.npz")
    parser.add_argument("--ids", type=Path, metavar="IDS.npy", help="words as ids, instead of the library's")
    parser.add_argument("--steps", type=int, default=1500, help="of training; default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="of 256 words each; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=65536, help="of the trace; default: %(default)s")
    parser.add_argument("--gates", type=Path, metavar="GATES.npz", help="where to keep gates and their rows")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="deviation of what is added to gates' logits in training"
    )
    args = parser.parse_args(argv)
    Block.noise = args.noise
    ids = torch.from_numpy((np.load(args.ids) if args.ids else library()).astype(np.int64))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Model().to(device)
    held_out = int(len(ids) * HELD_OUT) // CONTEXT * CONTEXT
    train(model, ids[:-held_out].to(device), args.steps, args.batch)
    choices, loss = routed(model, ids[-held_out:].to(device), args.tokens)
    print(
        f"loss on {len(choices)} held-out words: {loss:.3f} nats; guessing by frequency: {entropy(ids):.3f}"
    )
    if args.gates:
        np.savez_compressed(args.gates, **gates(model, ids[-held_out:].to(device)))
    borders = np.linspace(0, len(choices), 17).astype(np.int64)
    loads = [
        [np.bincount(choices[a:b, layer].ravel(), minlength=Block.experts) for layer in range(Model.layers)]
        for a, b in pairwise(borders)
    ]
    np.savez_compressed(  # the traces' own format, which `rayemu trace` reads
        args.out,
        rayemu_trace=np.array(1),
        loads=np.array(loads, np.int64),
        layers=np.arange(Model.layers),
        choices=choices.astype(np.int16),
        borders=borders,
        source=np.array(f"trained_router, {args.steps} steps, held-out loss {loss:.3f} nats"),
        notes=np.array([], np.str_),
    )
    return 0


def library() -> np.ndarray:
    """The standard library's words as ids [T], as the stream `text` has them, once through."""
    from rayemu.streams.text import Text

    text = Text(vocabulary=VOCABULARY)
    words = sum(1 for _ in text.words())
    return np.concatenate(list(islice(text.tokens(words), 1)))


class Block(nn.Module):
    """Causal attention, then 64 GELU experts of which each token has 8."""

    width, heads, experts, top_k, inner = 256, 4, 64, 8, 128
    noise = 0.0  # deviation of what is added to the gate's logits in training

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(self.width), nn.RMSNorm(self.width)
        self.qkv = nn.Linear(self.width, 3 * self.width, bias=False)
        self.out = nn.Linear(self.width, self.width, bias=False)
        self.gate = nn.Linear(self.width, self.experts, bias=False)
        self.up = nn.Parameter(torch.randn(self.width, self.experts * self.inner) / self.width**0.5)
        self.down = nn.Parameter(torch.randn(self.experts * self.inner, self.width) / self.inner**0.5 / 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows [B, T, D] to rows, the experts [B, T, K], and the loss of uneven loads."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        h = self.between(x)
        logits = self.gate(h).float()  # [B, T, E]
        if self.training and self.noise:
            logits = logits + torch.randn_like(logits) * self.noise
        likely = logits.softmax(-1)
        weight, experts = likely.topk(self.top_k)
        dense = torch.zeros_like(likely).scatter(-1, experts, weight / weight.sum(-1, keepdim=True))
        inner = F.gelu(h @ self.up).view(batch, tokens, self.experts, self.inner)
        y = (inner * dense.to(inner.dtype)[..., None]).flatten(2) @ self.down
        used = (dense > 0).float().mean((0, 1)) / self.top_k
        return x + y, experts, self.experts * (used * likely.mean((0, 1))).sum()


class Model(nn.Module):
    """Four blocks over word embeddings."""

    layers = 4

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, Block.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.places = nn.Parameter(torch.zeros(CONTEXT, Block.width))
        self.blocks = nn.ModuleList(Block() for _ in range(self.layers))
        self.norm = nn.RMSNorm(Block.width)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids [B, T] to logits [B, T, V], experts [B, T, L, K], and the loss of uneven loads."""
        x, chosen, uneven = self.embed(ids) + self.places[: ids.shape[1]], [], []
        for block in self.blocks:
            x, experts, loss = block(x)
            chosen.append(experts)
            uneven.append(loss)
        return self.norm(x) @ self.embed.weight.T, torch.stack(chosen, 2), torch.stack(uneven).mean()


def train(model: Model, ids: torch.Tensor, steps: int, batch: int) -> None:
    """Foretell the next word of random stretches of `ids`."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        start = torch.randint(len(ids) - CONTEXT - 1, (batch, 1), device=ids.device)
        words = ids[start + torch.arange(CONTEXT + 1, device=ids.device)]
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits, _, uneven = model(words[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), words[:, 1:].flatten())
        (loss + 0.01 * uneven).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 250 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item():.3f} nats, unevenness {uneven.item():.3f}", flush=True)


@torch.no_grad()
def routed(model: Model, ids: torch.Tensor, tokens: int) -> tuple[np.ndarray, float]:
    """The choices [T, L, K] of the first `tokens` words of `ids`, and the mean loss on them."""
    chosen, losses = [], []
    model.eval()
    for start in range(0, min(tokens, len(ids) - 1) // CONTEXT * CONTEXT, CONTEXT):
        words = ids[start : start + CONTEXT + 1][None]
        if words.shape[1] <= CONTEXT:
            break
        logits, experts, _ = model(words[:, :-1])
        losses.append(F.cross_entropy(logits[0].float(), words[0, 1:]).item())
        chosen.append(experts[0].cpu().numpy())
    return np.concatenate(chosen), float(np.mean(losses))


def gates(model: Model, ids: torch.Tensor, tokens: int = 8192) -> dict[str, Any]:
    """Weight [D, E] and rows [T, D] of each layer's gate, the rows those of the first `tokens` words."""
    rows: dict[int, list[np.ndarray]] = {layer: [] for layer in range(model.layers)}

    def keep(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
        return lambda gate, given, logits: rows[layer].append(given[0].float().cpu().numpy()[0])

    hooks = [block.gate.register_forward_hook(keep(layer)) for layer, block in enumerate(model.blocks)]
    routed(model, ids, tokens)
    for hook in hooks:
        hook.remove()
    found = {f"rows_{layer}": np.concatenate(some) for layer, some in rows.items()}
    for layer, block in enumerate(model.blocks):
        found[f"weight_{layer}"] = block.gate.weight.detach().float().cpu().numpy().T.copy()
    return found


def entropy(ids: torch.Tensor) -> float:
    """Return that of single words, in nats."""
    share = torch.bincount(ids).double() / len(ids)
    return float(-(share[share > 0] * share[share > 0].log()).sum())


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)

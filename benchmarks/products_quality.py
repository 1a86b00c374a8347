"""Does the precision of products move quality? One small Llama, bfloat16, trained by each backend on the same bytes.

    python benchmarks/products_quality.py --device cuda --out benchmarks/results/products_quality.json

The page (`eager`) multiplies in float32; kernels round some factors to 16 bits (docs/fast-path.md). Text: the
running Python's own sources, as bytes, files split into training and validation by a hash of their names.
"""

import argparse
import hashlib
import json
import platform
import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ldadam import LDAdamW, lowrank_param_groups


def load_bytes() -> tuple[torch.Tensor, torch.Tensor]:
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        held_out = hashlib.sha256(path.name.encode()).digest()[0] < 16
        parts[held_out].append(path.read_bytes() + b"\0")
    train, val = (torch.frombuffer(bytearray(b"".join(parts[which])), dtype=torch.uint8) for which in (False, True))
    return train, val


def batch(text: torch.Tensor, generator: torch.Generator, device: str) -> torch.Tensor:
    starts = torch.randint(len(text) - 257, (32,), generator=generator)
    return torch.stack([text[start : start + 256] for start in starts]).long().to(device)


def train(backend: str, rank: int, seed: int, args: argparse.Namespace) -> float:
    """The validation loss, nats per byte, after the last step."""
    text, val = load_bytes()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6
    )
    model = LlamaForCausalLM(config).to(args.device, torch.bfloat16)
    optimizer = LDAdamW(lowrank_param_groups(model, rank=rank), lr=2e-3, backend=backend)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 - 0.9 * step / args.steps)
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(args.steps):
        ids = batch(text, generator, args.device)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        losses = [
            model(input_ids=ids, labels=ids).loss.float()
            for ids in (batch(val, generator, args.device) for _ in range(40))
        ]
    return torch.stack(losses).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    results = {"hardware": name, "torch": torch.__version__, "steps": args.steps, "runs": []}
    for rank in args.ranks:
        for seed in args.seeds:
            for backend in ("eager", "auto"):
                loss = train(backend, rank, seed, args)
                results["runs"].append({"rank": rank, "seed": seed, "backend": backend, "validation_loss": loss})
                print(f"rank {rank} seed {seed} {backend:6s} {loss:.4f}", flush=True)
                args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

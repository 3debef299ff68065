"""Train the embedded model: a byte-level LLaMA on the source of Python's standard library.

    python benchmarks/embedded/train.py --out runs/embedded

Muon on the matrices, AdamW on embeddings and norms; warm-up, constant, then a linear decay to zero. A checkpoint is
written every `--every` steps and picked up again by the same command, so a killed run goes on; `--steps` may be changed
between runs as long as the decay has not begun. The end writes a transformers folder (config, float16 weights,
tokenizer) and a log of loss, held-out bits per byte and time.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from geocolor.embedded.corpus import corpus


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, its id the byte's value; NUL ends a text."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    symbol = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(BPE(vocab={symbol[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=symbol[0], pad_token=symbol[0])


def config(args: argparse.Namespace) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=256,
        hidden_size=args.width,
        intermediate_size=args.ffn,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=args.sequence,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )


def windows(data: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    return data[starts[:, None] + torch.arange(length)].long()


@torch.no_grad()
def bits_per_byte(model: torch.nn.Module, data: torch.Tensor, length: int, batch: int = 64) -> float:
    """Mean over all predicted bytes of consecutive windows."""
    model.eval()
    starts = torch.arange(0, len(data) - length, length)
    total: float = 0.0
    for part in starts.split(batch):
        logits = model(windows(data, part, length)).logits[:, :-1]
        target = windows(data, part, length)[:, 1:]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    model.train()
    bits: float = total / (len(starts) * (length - 1)) / math.log(2.0)
    return bits


def learning_rate(step: int, args: argparse.Namespace) -> float:
    return float(min(1.0, (step + 1) / args.warmup, (args.steps - step) / args.decay))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decay", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--ffn", type=int, default=448)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--lr", type=float, default=2e-2, help="of Muon")
    parser.add_argument("--lr-adam", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints and evaluations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    train = torch.frombuffer(bytearray(corpus("train")), dtype=torch.uint8)
    held_out = torch.frombuffer(bytearray(corpus("calibration")), dtype=torch.uint8)[: 256 * 1024]
    model = LlamaForCausalLM(config(args))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=args.lr, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=args.lr_adam, betas=(0.9, 0.95), weight_decay=0.0)
    peak = {muon: args.lr, adam: args.lr_adam}

    checkpoint, log = args.out / "checkpoint.pt", args.out / "train.log"
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, seconds = state["step"], state["seconds"]
    else:
        log.write_text(json.dumps({k: str(v) for k, v in vars(args).items() if k != "out"}) + "\n")

    forward = torch.compile(model) if args.compile else model
    model.train()
    running, since = 0.0, time.perf_counter()
    while step < args.steps:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)  # a resumed run draws the same batches
        batch = windows(
            train, torch.randint(len(train) - args.sequence, (args.batch,), generator=generator), args.sequence
        )
        logits = forward(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, lr in peak.items():
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate(step, args)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        running += loss.item() / math.log(2)
        if step % args.every == 0 or step == args.steps:
            count = (step - 1) % args.every + 1
            seconds += time.perf_counter() - since
            line = {"step": step, "train": round(running / count, 4), "seconds": round(seconds)}
            line["held_out"] = round(bits_per_byte(model, held_out, args.sequence), 4)
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
            state = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
            torch.save(state | {"step": step, "seconds": seconds}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            running, since = 0.0, time.perf_counter()

    shipped = model.to(torch.float16)
    shipped.save_pretrained(args.out / "model")
    byte_tokenizer().save_pretrained(args.out / "model")
    test = torch.frombuffer(bytearray(corpus("test")), dtype=torch.uint8)
    line = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_bits_per_byte": round(bits_per_byte(shipped.float(), test, args.sequence), 4),
    }
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line)


if __name__ == "__main__":
    main()

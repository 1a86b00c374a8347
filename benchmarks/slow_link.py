"""Two hosts and a slow link between them: seconds and bytes of a data-parallel step, with and without compression.

    sudo .venv/bin/python benchmarks/slow_link.py --out benchmarks/results/slow_link.json \\
        --picture docs/images/slow_link.png

Two processes train the 20m preset of `ldadam pretrain` on the CPU, one thread each, one sequence of 256 random tokens
each, by gloo. Each runs in a network namespace of its own, that knows nothing but one TUN device. This process carries
packets from one device to the other, like a cable: each leaves after those before it, at the rate of the link, and
arrives after its delay. TCP sees a real link; the kernel's netem, which many systems lack, is not needed. What gloo
gets of the link, a round trip and the rate of a large message, is measured and recorded beside each result.

Needs Linux and root. However it ends, the namespaces are removed; only SIGKILL would leave them (`ip netns list`).
"""

import argparse
import contextlib
import fcntl
import json
import os
import selectors
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from ldadam import LDAdamW, lowrank_param_groups, provenance
from ldadam.distributed import compress_gradients
from ldadam.training.presets import find_preset

PRESET = find_preset("20m")
DEVICE = "ldadam0"
ADDRESSES = ("10.213.0.1", "10.213.0.2")
PORT = 29_531
MTU = 9000
QUEUE_BYTES = 4 * 2**20  # what the link holds before it drops packets, which TCP then sends again
PROBE_BYTES = 5 * 10**6


class Subject(NamedTuple):
    """What is timed: an optimizer, its rank, and how ranks share gradients: "ddp", "compressed", or "none"."""

    name: str
    optimizer: str
    parallel: str
    rank: int = PRESET.rank


SUBJECTS = (
    Subject("AdamW, no link", "adamw", "none"),
    Subject("AdamW, DDP", "adamw", "ddp"),
    Subject("LDAdamW, DDP", "ldadamw", "ddp"),
    Subject(f"LDAdamW, compressed, r = {PRESET.rank}", "ldadamw", "compressed"),
    Subject("LDAdamW, compressed, r = 32", "ldadamw", "compressed", 32),
)


# The link


class Direction:
    """One direction of the link: packets on their way from one device to the other."""

    def __init__(self, source: int, target: int, *, bytes_per_second: float, delay: float):
        self.source, self.target, self.delay = source, target, delay
        self.bytes_per_second = bytes_per_second
        self.on_the_way: deque[tuple[float, bytes]] = deque()
        self.free_at = 0.0

    def take(self, now: float) -> None:
        """Read a packet; it leaves when those before it have left, or is dropped where too many wait."""
        packet = os.read(self.source, MTU)
        start = max(now, self.free_at)
        if (start - now) * self.bytes_per_second > QUEUE_BYTES:
            return
        self.free_at = start + len(packet) / self.bytes_per_second
        self.on_the_way.append((self.free_at + self.delay, packet))

    def deliver(self, now: float) -> None:
        """Write the packets that have arrived."""
        while self.on_the_way and self.on_the_way[0][0] <= now:
            with contextlib.suppress(OSError):  # the device goes away before the last packets do
                os.write(self.target, self.on_the_way.popleft()[1])

    @property
    def next_arrival(self) -> float:
        """When there is a packet to write, in the seconds of `time.monotonic`."""
        return self.on_the_way[0][0] if self.on_the_way else float("inf")


def carry(devices: list[int], args: argparse.Namespace, *, until: Callable[[], bool]) -> None:
    """Carry packets between the devices until `until()`."""
    link = {"bytes_per_second": args.megabits * 1e6 / 8, "delay": args.delay_ms / 1e3}
    directions = [Direction(*ends, **link) for ends in (devices, devices[::-1])]
    with selectors.DefaultSelector() as selector:
        for direction in directions:
            selector.register(direction.source, selectors.EVENT_READ, direction)
        next_look = 0.0
        while True:
            now = time.monotonic()
            if now >= next_look:
                if until():
                    return
                next_look = now + 0.1
            wait = min(next_look, *(direction.next_arrival for direction in directions)) - now
            for key, _ in selector.select(max(0.0, wait)):
                key.data.take(time.monotonic())
            for direction in directions:
                direction.deliver(time.monotonic())


def open_tun() -> int:
    """A new TUN device called `DEVICE`: the file that its packets are read from and written to."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    # TUNSETIFF with IFF_TUN | IFF_NO_PI: packets as they are, without a header before them; linux/if_tun.h.
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH", DEVICE.encode(), 0x0001 | 0x1000))
    return tun


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[list[str], list[int]]]:
    """Names of two network namespaces, and the files of their devices."""
    names = [f"ldadam-{os.getpid()}-{rank}" for rank in range(2)]
    with contextlib.ExitStack() as stack:
        devices = []
        for name, own, other in zip(names, ADDRESSES, ADDRESSES[::-1], strict=True):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            devices.append(open_tun())
            stack.callback(os.close, devices[-1])
            ip("link", "set", DEVICE, "netns", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "1000", "up")
            ip("-n", name, "address", "add", own, "peer", other, "dev", DEVICE)
        yield names, devices


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def run_on_both(subject: Subject, names: list[str], devices: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """What rank 0 measures, with one process on each host."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out = Path(folder) / "result.json"
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT)}
        workers = []
        for rank, name in enumerate(names):
            command = ["ip", "netns", "exec", name, sys.executable, __file__, "--steps", str(args.steps)]
            command += ["--worker", subject.name, "--out", str(out)]
            workers.append(subprocess.Popen(command, env={**environment, "RANK": str(rank)}))
            stack.callback(stop, workers[-1])
        carry(devices, args, until=lambda: any(worker.poll() for worker in workers) or are_done(workers))
        if any(worker.poll() for worker in workers):
            raise SystemExit(f"a process of {subject.name!r} failed: {[worker.poll() for worker in workers]}")
        return json.loads(out.read_text())


def are_done(workers: list["subprocess.Popen[bytes]"]) -> bool:
    return all(worker.poll() is not None for worker in workers)


def stop(worker: "subprocess.Popen[bytes]") -> None:
    """`ip netns exec` becomes the process that it starts, so that this ends it."""
    worker.kill()
    worker.wait()


# A process on one host


def build_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=PRESET.vocab_size,
        hidden_size=PRESET.hidden_size,
        intermediate_size=PRESET.intermediate_size,
        num_hidden_layers=PRESET.num_layers,
        num_attention_heads=PRESET.num_heads,
        max_position_embeddings=PRESET.sequence_length,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def assemble(subject: Subject) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model()
    if subject.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=PRESET.lr["adamw"], fused=True)
    else:
        optimizer = LDAdamW(lowrank_param_groups(model, rank=subject.rank), lr=PRESET.lr["ldadamw"])
    if subject.parallel == "compressed":
        assert isinstance(optimizer, LDAdamW)
        compress_gradients(model, optimizer)
    return model if subject.parallel == "none" else nn.parallel.DistributedDataParallel(model), optimizer


def sent_bytes() -> int:
    """What this host has sent over its device, packet headers and acknowledgements with it."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (fields,) = [line.split(":")[1].split() for line in lines if line.strip().startswith(f"{DEVICE}:")]
    return int(fields[8])


def measure_link() -> dict[str, float]:
    """What gloo gets of the link: a round trip, and the rate of a large message."""
    round_trips, probe = [], torch.zeros(PROBE_BYTES // 4)
    for _ in range(5):
        start = time.perf_counter()
        dist.barrier()
        round_trips.append(time.perf_counter() - start)
    dist.all_reduce(probe)
    start = time.perf_counter()
    dist.all_reduce(probe)
    seconds = time.perf_counter() - start
    return {"barrier_ms": 1e3 * min(round_trips), "all_reduce_megabits": 8e-6 * PROBE_BYTES / seconds}


def train(subject: Subject, steps: int, out: Path) -> None:
    """Train; rank 0 writes seconds and bytes of each step but the first two, which gather and compare more."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    link = measure_link()
    model, optimizer = assemble(subject)
    generator = torch.Generator().manual_seed(dist.get_rank())
    seconds, sent = [], []
    for _ in range(steps + 2):
        tokens = torch.randint(PRESET.vocab_size or 0, (1, PRESET.sequence_length), generator=generator)
        dist.barrier()
        start, before = time.perf_counter(), sent_bytes()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        sent.append(sent_bytes() - before)
    if dist.get_rank() == 0:
        out.write_text(json.dumps({**subject._asdict(), "link": link, "seconds": seconds[2:], "sent_bytes": sent[2:]}))
    dist.barrier()
    dist.destroy_process_group()


# The record


def draw(record: dict[str, Any], path: Path) -> None:
    """Seconds of a step of each subject, from the least to the most in all steps, with megabytes beside."""
    import matplotlib
    from matplotlib.figure import Figure

    from ldadam.report.figures import RUN_COLORS, STYLE

    results = record["results"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.9 + 0.5 * len(results)), layout="constrained")
        ax = figure.subplots()
        for row, result in enumerate(results):
            median = statistics.median(result["seconds"])
            spread = [[median - min(result["seconds"])], [max(result["seconds"]) - median]]
            color = RUN_COLORS[{"none": 5, "ddp": 0, "compressed": 2}[result["parallel"]]]
            ax.barh(row, median, height=0.6, xerr=spread, color=color)
            megabytes = statistics.median(result["sent_bytes"]) / 1e6
            ax.text(max(result["seconds"]), row, f"  {median:.2f} s, {megabytes:.0f} MB", va="center", fontsize=9)
        ax.set_yticks(range(len(results)), [result["name"] for result in results])
        ax.invert_yaxis()
        ax.margins(x=0.25)
        ax.set_xlabel("seconds per step; megabytes that each host sends")
        ax.set_title(f"Two hosts, {record['megabits']:g} Mbit/s and {record['delay_ms']:g} ms between them, 20m preset")
    figure.savefig(path, dpi=150)


def record_of(args: argparse.Namespace) -> dict[str, Any]:
    """All subjects, one after the other."""
    packages = ("torch", "transformers")
    record: dict[str, Any] = {"versions": provenance.versions(packages), "hardware": provenance.hardware()}
    record |= {"megabits": args.megabits, "delay_ms": args.delay_ms, "mtu": MTU, "steps": args.steps, "results": []}
    with two_hosts() as (names, devices):
        for subject in SUBJECTS:
            result = run_on_both(subject, names, devices, args)
            record["results"].append(result)
            median, sent = (statistics.median(result[key]) for key in ("seconds", "sent_bytes"))
            print(f"{subject.name:32} {median:7.2f} s a step  {sent / 1e6:7.1f} MB sent", flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each subject")
    parser.add_argument("--megabits", type=float, default=100.0, help="a second, in each direction")
    parser.add_argument("--delay-ms", type=float, default=10.0, help="of each packet, each way")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train(next(one for one in SUBJECTS if one.name == args.worker), args.steps, args.out)
        return
    if os.geteuid() != 0:
        parser.error("network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    record = record_of(args)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    if args.picture:
        draw(record, args.picture)


if __name__ == "__main__":
    main()

"""Peak memory of an export, per kind of checkpoint, of a random model of more than 1 GB.

    OMP_NUM_THREADS=1 python -m benchmarks.memory_export --out benchmarks/results/memory_export_cpu.json

Each export runs in a process of its own, whose own memory (RssAnon) is sampled every 2 ms from after the imports on;
pages of mapped files, which the system takes back when it needs them, do not count. The bound is one file of weights
plus what is read for one tensor; so that it shows, files are smaller here than the 5 GB of a real export. Checkpoints
are laid out as the strategies write them, the ZeRO ones for two ranks, without optimizer states.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.memory_loading import Peak
from ts2_lightning.export import ExportSettings, export, export_checkpoint
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import trained_state
from ts2_lightning.modules.language_model import load_language_model

RANKS = 2
PREFIX = "network.language_model."
SHARD_BYTES = 200_000_000
KINDS = ["one file", "FSDP2", "ZeRO-2", "ZeRO-3", "LoRA, merged", "LoRA, separate", "QLoRA, merged"]


def write_base(directory: Path) -> None:
    """A Llama of 0.28 billion weights in bfloat16, which a checkpoint holds in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=17, num_attention_heads=16
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}))).save_pretrained(directory)


def write_checkpoint(kind: str, base: Path, path: Path) -> None:
    """What a fit would have saved."""
    if "LoRA" in kind:
        model = load_language_model(language_model(kind, base))
        state = trained_state(dict(model.state_dict()), model)
        torch.save({"state_dict": {PREFIX + name: w for name, w in state.items()}, "global_step": 1}, path)
        return
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {f"{PREFIX}{name}": parameter.detach() for name, parameter in model.named_parameters()}
    if kind == "one file":
        torch.save({"state_dict": weights, "global_step": 1}, path)
    elif kind == "FSDP2":
        path.mkdir()
        dcp.save({"state_dict": weights}, checkpoint_id=path, no_dist=True)
        torch.save({"global_step": 1}, path / "meta.pt")
    else:
        write_deepspeed(weights, path, stage=int(kind[-1]))


def write_deepspeed(weights: dict[str, Tensor], path: Path, stage: int) -> None:
    """Ranks' float32 masters; every number of elements here is divisible by the ranks."""
    folder = path / "checkpoint"
    folder.mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    state: dict[str, Any] = {
        "module": {}, "buffer_names": [], "shared_params": {}, "dp_world_size": RANKS, "global_step": 1,
        "param_shapes": [{name: weight.shape for name, weight in weights.items()}],
    }  # fmt: skip
    if stage < 3:
        pieces = torch.cat([weight.flatten() for weight in weights.values()]).chunk(RANKS)
        torch.save(state, folder / "mp_rank_00_model_states.pt")
    for rank in range(RANKS):
        if stage == 3:
            own = torch.cat([weight.flatten().chunk(RANKS)[rank] for weight in weights.values()])
            held = {"fp32_flat_groups": [own]}
            torch.save(state, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        else:
            held = {"single_partition_of_fp32_groups": [pieces[rank].clone()]}
        torch.save({"optimizer_state_dict": held}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def language_model(kind: str, base: Path) -> LanguageModelConfig:
    """The configuration of the run."""
    adapter = AdapterConfig(r=16) if "LoRA" in kind else None
    return LanguageModelConfig(
        str(base), dtype="bfloat16" if adapter else "float32", adapter=adapter,
        quantization="nf4" if kind.startswith("Q") else None,
    )  # fmt: skip


def measure(kind: str, base: Path, checkpoint: Path, out: Path, shard_bytes: int) -> dict[str, Any]:
    """One export, in this process."""
    import bitsandbytes  # noqa: F401 (imported here, not while memory is watched)
    import peft  # noqa: F401

    export.SHARD_BYTES = shard_bytes
    dtype = None if "LoRA" in kind else "float32"
    settings = ExportSettings(base, dtype=dtype, adapter="separate" if "separate" in kind else "merged")
    start = time.perf_counter()
    peak = Peak()
    export_checkpoint(checkpoint, language_model(kind, base), out, settings)
    peak.stop()
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return {"kind": kind, "peak": peak.growth["RssAnon:"], "written": written, "seconds": time.perf_counter() - start}


def in_a_process(kind: str, scratch: Path, shard_bytes: int) -> dict[str, Any]:
    """One export, in a process of its own."""
    base, checkpoint, out = scratch / "base", scratch / "last.ckpt", scratch / "export"
    write_checkpoint(kind, base, checkpoint)
    one = ["--one", kind, str(base), str(checkpoint), str(out), "--shard_bytes", str(shard_bytes)]
    command = [sys.executable, "-m", "benchmarks.memory_export", *one]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print("{kind:<16} peak {peak:>13,} B, written {written:>13,} B, {seconds:.1f} s".format(**row), flush=True)
    shutil.rmtree(out)
    shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    return row


def main() -> None:
    """Measures every kind, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--shard_bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--out", help="write the figures to this file")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, base, checkpoint, out = options.one
        print(json.dumps(measure(kind, Path(base), Path(checkpoint), Path(out), options.shard_bytes)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_base(Path(scratch) / "base")
        rows = [in_a_process(kind, Path(scratch), options.shard_bytes) for kind in options.kinds]
    record = {
        "platform": platform.platform(),
        "torch": torch.__version__,
        "shard_bytes": options.shard_bytes,
        "rows": rows,
    }
    if options.out:
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

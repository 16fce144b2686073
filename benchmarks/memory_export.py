"""Peak memory of an export, per kind of checkpoint, of a random model of more than 1 GB.

    OMP_NUM_THREADS=1 python -m benchmarks.memory_export --out benchmarks/results/memory_export_cpu.json
    git worktree add OLD REVISION && ... --before OLD    # another revision beside it, in turns

Each export runs in a process of its own, whose own memory (RssAnon) is sampled every 2 ms from after the imports on;
pages of mapped files, which the system takes back when it needs them, do not count. The bound is what is read, cast and
compared of one tensor; the largest one here has 131 MB. Files are smaller than the 5 GB of a real export, so that it
would show if one were held whole. Checkpoints are laid out as the strategies write them, the ZeRO ones for two ranks,
without optimizer states. `in memory` is what a fit on one GPU does at its end; `rounded` kinds are cast to bfloat16.
"""

import argparse
import json
import os
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

from benchmarks import record
from benchmarks.memory_loading import Peak
from ts2_lightning.cli.record import revision
from ts2_lightning.export import ExportSettings, export, export_checkpoint, export_model
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import trained_state
from ts2_lightning.modules.language_model import load_language_model

RANKS = 2
PREFIX = "network.language_model."
SHARD_BYTES = 200_000_000
KINDS = [
    *("in memory, rounded", "one file", "one file, rounded", "FSDP2", "ZeRO-2", "ZeRO-3"),
    *("LoRA, merged", "LoRA, separate", "QLoRA, merged"),
]


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
    if kind.startswith(("one file", "in memory")):
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
    dtype = None if "LoRA" in kind or "rounded" in kind else "float32"
    settings = ExportSettings(base, dtype=dtype, adapter="separate" if "separate" in kind else "merged")
    lm = language_model(kind, base)
    model = load_language_model(lm) if kind.startswith("in memory") else None
    start = time.process_time()
    peak = Peak()
    if model is None:
        export_checkpoint(checkpoint, lm, out, settings)
    else:
        export_model(model, out, settings)
    peak.stop()
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    seconds = round(time.process_time() - start, 2)
    return {"kind": kind, "peak": peak.growth["RssAnon:"], "written": written, "processor_seconds": seconds}


def in_a_process(kind: str, scratch: Path, shard_bytes: int, package: Path) -> dict[str, Any]:
    """One export, in a process of its own, by the package that lies in a directory."""
    base, checkpoint, out = scratch / "base", scratch / "last.ckpt", scratch / "export"
    one = ["--one", kind, str(base), str(checkpoint), str(out), "--shard_bytes", str(shard_bytes)]
    # As a file, not as a module: the working directory would come before PYTHONPATH.
    command = [sys.executable, str(Path(__file__).resolve()), *one]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": str(package)}
    )
    shutil.rmtree(out)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure_kind(kind: str, scratch: Path, shard_bytes: int, before: Path | None) -> dict[str, Any]:
    """One export, and the one of another revision."""
    checkpoint = scratch / "last.ckpt"
    write_checkpoint(kind, scratch / "base", checkpoint)
    row = in_a_process(kind, scratch, shard_bytes, record.ROOT)
    if before is not None:
        other = in_a_process(kind, scratch, shard_bytes, before)
        row |= {"peak_before": other["peak"], "processor_seconds_before": other["processor_seconds"]}
    print(json.dumps(row), flush=True)
    shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    return row


def main() -> None:
    """Measures every kind, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--shard_bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--before", type=Path, help="checkout of another revision, measured in turns with this one")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, base, checkpoint, out = options.one
        print(json.dumps(measure(kind, Path(base), Path(checkpoint), Path(out), options.shard_bytes)))
        return
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        write_base(scratch / "base")
        rows = [measure_kind(kind, scratch, options.shard_bytes, options.before) for kind in options.kinds]
    figures = {"shard_bytes": options.shard_bytes, "rows": rows}
    if options.before is not None:
        figures["revision_before"] = revision(options.before)
    record.write(options.out, figures)


if __name__ == "__main__":
    main()

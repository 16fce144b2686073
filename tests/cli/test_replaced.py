"""Nothing that was given is dropped in silence where a class, or a list, is named twice."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from ts2_lightning.cli.errors.guard import CommandLineError
from ts2_lightning.cli.errors.replaced import replaced_settings

DEFAULTS = {"model.loss": "ts2_lightning.losses.TS2Loss"}
TS2 = "model:\n  loss:\n    class_path: TS2Loss\n    init_args: {alpha: 0.7}\n"
GONE = "takes the place of TS2Loss, whose settings no longer count: alpha (a.yaml:4)"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {
        "a": TS2,
        "b": "model:\n  loss:\n    init_args: {}\n    class_path: my.EntmaxLoss\n",
        "short": "model: {loss: EntmaxLoss}\n",
        "fragment": "class_path: ts2_lightning.losses.TS2Loss\ninit_args:\n  alpha: 0.2\n",
        "names": "model:\n  loss: fragment.yaml\n",
        "implied": "model: {loss: {alpha: 0.7}}\n",
        "nested": (
            "model:\n  loss:\n    class_path: ReferenceAnchored\n    init_args:\n"
            "      loss: {class_path: TS2Loss, init_args: {alpha: 1}}\n      weight: 2\n"
        ),
        "fsdp": "trainer:\n  strategy:\n    class_path: FSDP2\n    init_args: {tensor_parallel_size: 2}\n",
        "ddp": "trainer: {strategy: ddp}\n",
        "lists": "trainer:\n  callbacks:\n  - class_path: A\n    init_args: {x: 1}\n  - class_path: m.B\n",
        "other": "trainer:\n  callbacks:\n  - class_path: C\n",
        "more": "trainer:\n  callbacks+:\n  - class_path: C\n",
        "rates": "model: {optimizer: {lr: 1}}\ndata: {train: Rows.jsonl}\n",
        "module": "model:\n  class_path: mine.Module\n  optimizer: {lr: 2}\n",
    }
    for name, text in texts.items():
        Path(f"{name}.yaml").write_text(text)


@pytest.mark.parametrize(
    "line",
    [
        "--model.loss TS2Loss --model.loss.alpha 0.7 --model.loss=EntmaxLoss",
        "--model.loss TS2Loss --model.loss.alpha 0.7 --model.loss EntmaxLoss --model.loss.alpha 1.5",
        "--model.loss=TS2Loss --model.loss.init_args.alpha=0.7 --model.loss.class_path=EntmaxLoss",
        "--model.loss.alpha 0.7 --model.loss my.EntmaxLoss",
        "--model.loss fragment.yaml --model.loss.alpha=3 --model.loss EntmaxLoss",
        "--model.loss EntmaxLoss --model.loss.alpha=3 --model.loss fragment.yaml",
        "--model.loss.alpha 0.7 -c b.yaml",
        "--model.loss.alpha 0.7 -c short.yaml",
        "--trainer.strategy FSDP2 --trainer.strategy.timeout 3 --trainer.strategy ddp",
        "--trainer.callbacks=A --trainer.callbacks.x=3 --trainer.callbacks=B",
        "-c nested.yaml --model.loss.weight=3 --model.loss TS2Loss",
    ],
)
def test_what_was_typed_is_refused(line: str) -> None:
    with pytest.raises(CommandLineError, match=r"^--[a-z._]+ comes before .*, which would reset it; give"):
        replaced_settings(line.split(), DEFAULTS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-c a.yaml -c b.yaml", f"model.loss: EntmaxLoss (b.yaml:4) {GONE}"),
        ("-c a.yaml -c short.yaml", f"model.loss: EntmaxLoss (short.yaml:1) {GONE}"),
        ("-c a.yaml --model.loss EntmaxLoss", f"model.loss: EntmaxLoss (--model.loss) {GONE}"),
        ("-c a.yaml --model.loss=null", f"model.loss: null (--model.loss) {GONE}"),
        (
            "-c names.yaml --model.loss x.EntmaxLoss",
            "model.loss: EntmaxLoss (--model.loss) takes the place of TS2Loss, whose settings no longer count: alpha "
            "(fragment.yaml:3)",
        ),
        (
            "-c implied.yaml -c b.yaml",
            "model.loss: EntmaxLoss (b.yaml:4) takes the place of TS2Loss, whose settings no longer count: alpha "
            "(implied.yaml:1)",
        ),
        (
            "-c nested.yaml --model.loss TS2Loss",
            "model.loss: TS2Loss (--model.loss) takes the place of ReferenceAnchored, whose settings no longer count: "
            "loss (nested.yaml:5), loss.alpha (nested.yaml:5), weight (nested.yaml:6)",
        ),
        (
            "-c fsdp.yaml -c ddp.yaml",
            "trainer.strategy: ddp (ddp.yaml:1) takes the place of FSDP2, whose settings no longer count: "
            "tensor_parallel_size (fsdp.yaml:4)",
        ),
        (
            "-c lists.yaml -c other.yaml",
            "trainer.callbacks: what other.yaml:2 names takes the place of the list of lists.yaml:2 (A, B); write "
            "`callbacks+` to add to it",
        ),
        (
            "-c lists.yaml --trainer.callbacks D",
            "trainer.callbacks: what --trainer.callbacks names takes the place of the list of lists.yaml:2 (A, B); "
            "write `callbacks+` to add to it",
        ),
    ],
)
def test_what_a_file_gave_is_said(line: str, said: str) -> None:
    assert replaced_settings(line.split(), DEFAULTS) == [said]


@pytest.mark.parametrize(
    "line",
    [
        "-c a.yaml -c fragment.yaml",
        "-c a.yaml --model.loss TS2Loss --model.loss.alpha 1",
        "-c a.yaml --model.loss.alpha 1",
        "-c a.yaml --model.loss fragment.yaml",
        "-c b.yaml --model.loss TS2Loss",  # it gave no settings
        "--model.loss TS2Loss --model.loss.alpha 0.7 --model.loss ts2_lightning.losses.TS2Loss",  # the same class
        "-c lists.yaml -c more.yaml",
        "--trainer.callbacks+=A --trainer.callbacks.x=3 --trainer.callbacks+=B",
        "-c rates.yaml --model.optimizer.lr 2 --data.train Others.jsonl",
        "-c rates.yaml -c module.yaml --model.class_path mine.Other",
        "-c {model:{loss:EntmaxLoss}}",
        "-c",
    ],
)
def test_what_is_kept_is_not_told(line: str) -> None:
    assert replaced_settings(line.split(), DEFAULTS) == []


def test_the_command_says_it(real: Run) -> None:
    elsewhere = ("--model.lm.path=./none", "--data.train=none.jsonl")
    Path("a.yaml").write_text(TS2)
    said = real("fit", "-c", "a.yaml", "--model.loss=CrossEntropyLoss", *elsewhere)
    assert said.err.startswith(f"model.loss: CrossEntropyLoss (--model.loss) {GONE}\n")
    refused = real("fit", "--model.loss=TS2Loss", "--model.loss.alpha=1", "--model.loss=CrossEntropyLoss", *elsewhere)
    assert refused.refusal.startswith("--model.loss.alpha comes before --model.loss, which would reset it")

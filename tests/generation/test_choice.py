"""The backend that a text names, and how long a model keeps it."""

from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.tiny_llama import write_base
from tests.support.stand_in_vllm import write_interpreter
from ts2_lightning.evaluation import Model
from ts2_lightning.generation import Decoder, GenerationSettings, Request
from ts2_lightning.generation.backends import TransformersBackend, check_backend
from ts2_lightning.generation.backends.vllm import VLLMBackend
from ts2_lightning.types import UserError


@pytest.mark.parametrize("choice", ["transformers", "vllm:python3", "vllm:/a b/python"])
def test_backends(choice: str) -> None:
    check_backend(choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("transformer", r"^no backend 'transformer'; did you mean transformers\?$"),
        ("vllm", r"^no backend 'vllm'; there is transformers, vllm:PYTHON$"),
        ("vllm:", r"^no backend 'vllm:'; there is transformers, vllm:PYTHON$"),
        ("vllm:PYTHON", r"^no backend 'vllm:PYTHON'"),
        ("", r"^no backend ''; there is transformers, vllm:PYTHON$"),
        ("endpoint:http://h#m", "is no backend but a model: name it in the place of MODEL"),
    ],
)
def test_others(choice: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_backend(choice)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def test_a_model_keeps_a_backend_that_has_loaded_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is told to forget, or is loaded here: both may want the memory of the same device."""
    monkeypatch.setenv("STAND_IN_STARTS", str(tmp_path / "starts"))
    interpreter = write_interpreter(tmp_path / "environment")
    arguments = {"max_num_seqs": 2}
    model = Model("m", None, lambda: str(place), tmp_path, backend=f"vllm:{interpreter}", vllm_args=arguments)
    asked = [Request((6, 7), 0, GenerationSettings("m", Decoder(), 2))]

    def starts() -> list[str]:
        return (tmp_path / "starts").read_text().splitlines()

    for number, let_go in enumerate([model.forget, lambda: model.network, model.forget], 1):
        first: Any = model.make_backend(8)
        assert isinstance(first, VLLMBackend)
        assert model.make_backend(16) is first
        assert len(list(first.complete(asked))) == len(list(first.complete(asked))) == 1
        assert len(starts()) == number
        assert "('max_num_seqs', 2)" in starts()[-1]
        let_go()
        assert not Path(f"/proc/{starts()[-1].split()[0]}").exists()


def test_one_of_transformers_is_made_for_its_batch_size(place: Path, tmp_path: Path) -> None:
    model = Model("m", None, lambda: str(place), tmp_path)
    sizes = (8, 16)
    made = [model.make_backend(size) for size in sizes]
    assert [one.batch_size for one in made if isinstance(one, TransformersBackend)] == list(sizes)

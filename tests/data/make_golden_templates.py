"""Write tests/data/golden_templates: text, ids and learnt spans of a few conversations in every bundled template.

Run it after a layout was changed on purpose: `python tests/data/make_golden_templates.py`. The tokenizer is byte level
with a few merges written down here, so that nothing but the templates and their encoding can change the ids.
"""

import json
from pathlib import Path
from typing import Any

from data_helpers import LLAMA3_SPLIT, chat
from template_tokenizers import SYSTEM, TOOL, with_controls
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data.bundled import TEMPLATES
from ts2_lightning.data.templates import make_template

DIRECTORY = Path(__file__).parent / "golden_templates"
SIMPLE = chat("Hi", "Yes ", "Why?", "So.", system="Be kind.")
TRICKY = chat(
    " \n<|im_end|> [/INST]", "\n\n é☃ <|eot_id|>\n", "42\n\n", "  </s>the end<end_of_turn> ", system="\nthe\n"
)
_WITH_TOOL = [*chat("the sea?", "call(sea)"), {"role": "tool", "content": "blue\n"}, *chat("", "Blue.")[1:]]
_MERGES = ["t h", "th e", "Ġ the", "Ċ Ċ", "Ġ Ġ", "e n", "en d", "u s", "us e", "use r", "< |", "| >", "> Ċ"]


def golden_tokenizer() -> PreTrainedTokenizerFast:
    """Byte level, with the merges above and the control strings of all templates."""
    merges = [tuple(merge.split()) for merge in _MERGES]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return with_controls(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))


def golden_conversations(name: str) -> list[list[dict[str, str]]]:
    """Those that a template can render: without system turn, with an input, with a tool's turn."""
    kept = [SIMPLE, TRICKY] if name in SYSTEM else [SIMPLE[1:], TRICKY[1:]]
    if name == "tofu":
        kept.append([*chat("Add.")[:1], *chat("1, 2 ", "3")])
    return [*kept, _WITH_TOOL] if name in TOOL else kept


def golden(name: str) -> list[dict[str, Any]]:
    """What the code makes of the conversations now."""
    template = make_template(name, golden_tokenizer())
    rows = []
    for messages in golden_conversations(name):
        rendering = template.render(messages)
        [encoded] = template.encode([rendering])
        rows.append({"text": rendering.text, "ids": encoded.ids, "spans": [list(span) for span in encoded.spans]})
    return rows


def main() -> None:
    """Write one file per template."""
    DIRECTORY.mkdir(exist_ok=True)
    for name in TEMPLATES:
        rows = ",\n".join(json.dumps(row) for row in golden(name))
        (DIRECTORY / f"{name}.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The chat templates that come with the package.

Each writes, in jinja of our own, the layout that the makers of a family of models document, so that a base model can be
trained in it; a tokenizer's own template is `tokenizer`. A role that a layout has no place for is refused, not dropped.
Contents are stripped where the documented layout strips them.

A bundled template names the control strings that must be single tokens. A layout whose turns end with the tokenizer's
own end of text needs none: what else it writes (`<|user|>`, `User:`) is text.
"""

from collections.abc import Sequence
from typing import NamedTuple


class BundledTemplate(NamedTuple):
    """A template that does not come with a tokenizer."""

    jinja: str
    controls: tuple[str, ...]  # strings that must be single tokens of the tokenizer


def _refuse(condition: str, reason: str) -> str:
    return f"{{% if {condition} %}}{{{{ raise_exception({reason}) }}}}{{% endif %}}"


def _only(*roles: str) -> str:
    return _refuse(f"message['role'] not in {list(roles)}", "'this layout has no ' + message['role'] + ' turns'")


def _each(body: str) -> str:
    return f"{{% for message in messages %}}{body}{{% endfor %}}"


def _generate(text: str) -> str:
    return f"{{% if add_generation_prompt %}}{{{{ '{text}' }}}}{{% endif %}}"


_CONVERSATION = _only("system", "user", "assistant")
_BEGIN = "{{ bos_token or '' }}"
_AFTER = "messages[loop.index0 - 1]['role']"  # the role of the turn before; of the last one where there is none

# A system turn becomes the beginning of the first user turn.
_SYSTEM_OPENS = _refuse(
    "message['role'] == 'system' and (not loop.first or loop.last or messages[1]['role'] != 'user')",
    "'this layout takes a system turn only at the beginning, before a user turn'",
)
_OPENS_TURN = f"loop.first or {_AFTER} != 'system'"

_LLAMA3 = (
    _each(
        "{% if loop.first %}<|begin_of_text|>{% endif %}"
        "<|start_header_id|>{{ 'ipython' if message['role'] == 'tool' else message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>"
    )
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML = _each("<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{{ '\\n' }}") + _generate(
    "<|im_start|>assistant\\n"
)
_GEMMA = (
    _BEGIN
    + _each(
        _CONVERSATION + _SYSTEM_OPENS + "{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\\n' }}"
        f"{{% elif {_OPENS_TURN} %}}{{{{ '<start_of_turn>user\\n' }}}}{{% endif %}}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% else %}{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endif %}"
    )
    + _generate("<start_of_turn>model\\n")
)


def _mistral(space: str) -> str:
    return _BEGIN + _each(
        _CONVERSATION + _SYSTEM_OPENS + f"{{% if message['role'] == 'assistant' %}}{{{{ '{space}' }}}}"
        "{{ message['content'] | trim }}{{ eos_token }}"
        f"{{% else %}}{{% if {_OPENS_TURN} %}}{{{{ '[INST]{space}' }}}}{{% endif %}}{{{{ message['content'] }}}}"
        "{{ '\\n\\n' if message['role'] == 'system' else '[/INST]' }}{% endif %}"
    )


_OLMO = (
    _BEGIN
    + _each(
        _CONVERSATION + "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% if message['role'] != 'assistant' or not loop.last %}{{ '\\n' }}{% endif %}"
    )
    + _generate("<|assistant|>\\n")
)
_PHI3 = _each(_CONVERSATION + "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}") + _generate(
    "<|assistant|>\\n"
)
_PHI4 = _each(
    _CONVERSATION + "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' }}{{ message['content'] | trim }}<|im_end|>"
) + _generate("<|im_start|>assistant<|im_sep|>")
_TOFU = _BEGIN + _each(
    _only("user", "assistant")
    + _refuse(
        f"message['role'] == 'assistant' and (loop.first or {_AFTER} != 'user')",
        "'an answer must follow an instruction'",
    )
    + _refuse(
        f"message['role'] == 'user' and loop.index0 > 1 and {_AFTER} == messages[loop.index0 - 2]['role']",
        "'at most two user turns can follow each other, an instruction and its input'",
    )
    + "{% if loop.first %}{{ '\\nBelow is an instruction that describes a task. Write a response that appropriately "
    "completes the request. Input might contain additional information.\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ ' ' }}{{ message['content'] | trim }}{{ ' \\n<|/response|>\\n' }}{{ eos_token }}{% else %}"
    f"{{% if loop.first or {_AFTER} != 'user' %}}{{{{ 'Instruction: \\n<|instruct|> \\n' }}}}"
    "{{ message['content'] | trim }}{{ ' \\n<|/instruct|> \\n\\nInput: \\n<|input|> \\n' }}"
    "{% else %}{{ message['content'] | trim }}{% endif %}"
    "{% if loop.last or messages[loop.index]['role'] != 'user' %}"
    "{{ ' \\n<|/input|> \\n\\nResponse: \\n<|response|>\\n' }}{% endif %}{% endif %}"
)
_PLAIN = (
    _BEGIN
    + _each("{{ message['role'] | capitalize }}:{{ '\\n' }}{{ message['content'] | trim }}{{ eos_token }}")
    + _generate("Assistant:\\n")
)

TEMPLATES: dict[str, BundledTemplate] = {
    "llama3": BundledTemplate(_LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": BundledTemplate(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "gemma": BundledTemplate(_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "mistral": BundledTemplate(_mistral(" "), ("[INST]", "[/INST]")),
    "mistral_tekken": BundledTemplate(_mistral(""), ("[INST]", "[/INST]")),
    "olmo": BundledTemplate(_OLMO, ()),
    "phi3": BundledTemplate(_PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "phi4": BundledTemplate(_PHI4, ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    "tofu": BundledTemplate(_TOFU, ()),
    "plain": BundledTemplate(_PLAIN, ()),
}
"""The templates that can be chosen by name.

- `llama3`: Llama 3; what a tool returns is a turn of `ipython`, as from 3.1 on. No default system turn.
- `chatml`: Qwen, OLMo 3 and many others, without anyone's default system turn.
- `gemma`: Gemma 1 to 3. It has no system turns; one at the beginning opens the first user turn, as in Gemma 3's.
- `mistral`, `mistral_tekken`: Mistral's third layout, with spaces before the contents for SentencePiece (7B v0.3), and
  without for Tekken (Nemo). A system turn opens the first user turn. (Mistral's own templates move it into the last
  one, or drop it where the conversation ends with an answer: earlier answers would be learnt without it.)
- `olmo`: OLMo and OLMo 2, Tulu's layout: `<|user|>` is text, and eos closes the turn.
- `phi3`, `phi4`: Phi 3 and Phi 4.
- `tofu`: the delimiters of "Diversity in Large Language Models under Supervised Fine-Tuning". The paper (B.2) says that
  there are explicit delimiters for instruction, input and response, and that the model has to produce the response's
  closing one, but not what they are: that is from the code it names (anonymous2026icml/TOFU), where eos follows.
  Instruction and input are two user turns in a row; without the second the input is left empty. The delimiters are
  text, not tokens of their own, and the space before the answer is learnt with it. On further turns both are silent,
  and the code leaves the beginning of text to the tokenizer's habits: here a further turn repeats everything but the
  first sentences after the eos of the one before, and the text begins with the tokenizer's bos, if it has one.
- `plain`: needs no special token but the end of text: `User:`, a new line, the content, eos.
"""


def register_template(name: str, jinja: str, controls: Sequence[str] = ()) -> None:
    """Register a jinja chat template under a name.

    Args:
        name: name for `data.template`.
        jinja: source, with the variables of transformers (`messages`, `add_generation_prompt`, `bos_token`, ...).
        controls: strings that must be single tokens of the tokenizer.

    Example:
        >>> register_template("mine", "{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}", ["<|eot|>"])
        >>> TEMPLATES.pop("mine").controls
        ('<|eot|>',)
    """
    TEMPLATES[name] = BundledTemplate(jinja, tuple(controls))

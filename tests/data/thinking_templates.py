"""Chat templates that think, in the manner of those that models come with, for the byte-level tokenizer."""

QWEN3 = (  # a field; thoughts before the last question are taken out; an empty block before the last answer without one
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{%- endif %}"
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}"
    "{%- if m.role == 'assistant' %}{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if m.reasoning_content is defined and m.reasoning_content is not none %}"
    "{%- set thought = m.reasoning_content %}"
    "{%- elif '</think>' in m.content %}{%- set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- set thought = m.content.split('</think>')[0].split('<think>')[-1] %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- content }}{%- endif %}"
    "{%- for call in m.tool_calls or [] %}{%- if content or not loop.first %}{{- '\n' }}{%- endif %}"
    "{{- '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{%- endfor %}"
    "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
R1 = (  # the prompt opens the thought, and every answer is written without its own
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1] %}<|im_start|>assistant\n{{ content }}<|im_end|>{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
GPT_OSS = (  # channels, with a field of another name; the end of the last answer is another token, and that of a call
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.tool_calls %}<|start_header_id|>assistant"
    "<|end_header_id|>call\n{{ m.tool_calls[0].function | tojson }}<|end_of_text|>"
    "{% elif loop.last and not add_generation_prompt %}"
    "{% if m.thinking is defined %}<|start_header_id|>assistant<|end_header_id|>analysis\n{{ m.thinking }}<|im_end|>"
    "{% endif %}<|start_header_id|>assistant<|end_header_id|>final\n{{ m.content }}<|eot_id|>{% else %}"
    "<|start_header_id|>assistant<|end_header_id|>final\n{{ m.content }}<|im_end|>{% endif %}{% else %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant{% endif %}"
)
SMOLLM3 = (  # contents as they are; the system turn and an empty block say that it is not to think
    "{% set enable_thinking = enable_thinking if enable_thinking is defined else true %}"
    "<|im_start|>system\n{{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not enable_thinking %}"
    "<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}"
    "{% endif %}"
)
GRANITE = (  # contents as they are; thinks only if it is told to
    "{% if thinking %}<|im_start|>system\nThink first.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

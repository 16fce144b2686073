"""Reading answers out of a model's text: letters, numbers, mathematics, code.

In comes the text of one response, out comes an answer, or None where the text has none that can be read. All are pure
functions, but for mathematics, which is compared in processes of its own. A function `..._papers_code` is the rule of a
paper's public code, mistakes included; the others are ours. Nothing here knows of models, prompts or files.
"""

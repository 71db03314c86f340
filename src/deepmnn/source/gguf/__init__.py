"""GGUF, the files of llama.cpp: one file holds a model, its config and its tokenizer.

- file.py: what lies in a file, metadata and tensors, by its own names
- splits.py, contents.py: which files are one model, and what those hold together
- types.py, groups.py: how the numbers of a tensor are stored
- names.py: llama.cpp's names beside those of Hugging Face; exporting uses them, too
- weights.py: a model's tensors, made of the file's
- config.py, rope.py: metadata as the fields of config.json
- tokenizer.py, pre_tokenizers.py: metadata as tokenizer.json
- source.py: all of it, as a Source
"""

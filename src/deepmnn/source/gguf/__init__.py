"""GGUF, the files of llama.cpp: one file holds a model, its config and its tokenizer.

file.py      what lies in a file: metadata and tensors, by their own names
splits.py    which files are one model
types.py     how the numbers of a tensor are stored
names.py     a file's tensors under the names of Hugging Face
config.py    metadata as the fields of config.json
tokenizer.py metadata as tokenizer.json
source.py    all of it, as a Source
"""

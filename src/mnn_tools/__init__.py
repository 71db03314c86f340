"""MNN's tools over deepmnn, for models that deepmnn exported and for its own.

python3 -m mnn_tools profile --model deepseek.mnn --input input.bin --repeat 100
"""

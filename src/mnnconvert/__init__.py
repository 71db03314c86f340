"""MNNConvert's command line over deepmnn, for DeepSeek-family models, which MNN's own cannot read.

python3 -m mnnconvert -f TORCH --modelFile deepseek.pt --MNNModel deepseek.mnn --bizCode DS \
    --optimizeLevel 3 --fp16
"""

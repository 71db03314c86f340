"""Alibaba's MNN: a converted model as a folder that MNN and its phone apps load."""

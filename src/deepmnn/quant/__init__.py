"""Quantisation: recipes choose a storage format per weight, pack writes the kernels' layouts."""

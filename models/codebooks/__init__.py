"""Residual-quantisation codebooks: fitting, encoding, ONNX."""

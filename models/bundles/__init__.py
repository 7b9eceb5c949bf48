"""A bundle: codebook, ONNX graph, language model, and a manifest written last."""

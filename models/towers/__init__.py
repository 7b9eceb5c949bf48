"""The dual tower: text → embedding, trained here, run as ONNX."""

"""What a trained network says of images: one by one, by the million, explained, and as ONNX."""

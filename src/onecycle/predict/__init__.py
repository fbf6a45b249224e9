"""Prediction with a trained network: single images, many files, explanations, and ONNX."""

"""Towers and adapters as ONNX models, written by our own graph writer (`onnx_graph`)."""

"""Run a trained model: torch, ONNX Runtime or OpenVINO behind one small interface."""

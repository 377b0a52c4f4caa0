"""Models that were trained elsewhere and are loaded from files: ONNX, MLflow, sealed pickles."""

"""A trained network as an ONNX file for programs without torch: made, checked, described and read."""

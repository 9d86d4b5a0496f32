"""The graph between Darknet and engines: an `onnx_ir.Model`, how it is made, changed, proven and written."""

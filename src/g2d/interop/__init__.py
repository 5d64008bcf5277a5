"""Models of other worlds: Keras and ONNX in and out, MLflow out. Each needs its extra.

What a world's own library reads or writes is checked by that library before it counts. Nothing
here is imported before it is asked for.
"""

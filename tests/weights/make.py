"""Writes weights with the libraries that people use: safetensors, gguf, onnx, and a zip laid out as PyTorch lays one out."""

import sys
import zipfile
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
rng = np.random.default_rng(7)
tensors = {f"model.layers.{i}.mlp.weight": rng.random((512, 1024), dtype=np.float32) for i in range(6)}

from safetensors.numpy import save_file  # noqa: E402

save_file(tensors, folder / "m.safetensors", metadata={"format": "np"})

import gguf  # noqa: E402

writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
writer.add_block_count(6)
writer.add_token_list(["<a>", "<b>", "c"])
for i, (name, tensor) in enumerate(tensors.items()):
    quantized = i % 2 == 1
    data = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0) if quantized else tensor
    writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0 if quantized else None)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

weights = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
node = helper.make_node("MatMul", ["x", next(iter(tensors))], ["y"])
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 512])]
outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1024])]
onnx.save(helper.make_model(helper.make_graph([node], "g", inputs, outputs, weights)), folder / "m.onnx")

with zipfile.ZipFile(folder / "m.pt", "w", zipfile.ZIP_STORED) as out:
    out.writestr("m/data.pkl", b"\x80\x02}q\x00.")
    for i, tensor in enumerate(tensors.values()):
        out.writestr(f"m/data/{i}", tensor.tobytes())
    out.writestr("m/version", b"3\n")

"""Small networks for the tests of engines, as modules and as files of every kind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper, parser
from torch import nn

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


class Classifier(nn.Module):
    """n x 3 x h x w, any size of 7 x 7 or more, to n x 5."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4, 5)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class SumAndDifference(nn.Module):
    """Two inputs n x w, two outputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


def onnx_text(path: Path, graph: str, **weights: torch.Tensor) -> str:
    """Write a graph in ONNX's text syntax, with its weights, to a file."""
    model = parser.parse_model(HEADER + graph)
    for name, weight in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(weight.detach().numpy(), name))
    onnx.save(model, str(path))
    return str(path)


def onnx_classifier(path: Path, shape: str = "n,3,h,w") -> str:
    net = Classifier()
    return onnx_text(
        path,
        f"""g (float[{shape}] x) => (float[m,5] y) {{
            c = Conv<strides=[2,2]>(x, cw, cb)
            r = Relu(c)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            y = Gemm<transB=1>(f, hw, hb)
        }}""",
        cw=net.conv.weight,
        cb=net.conv.bias,
        hw=net.head.weight,
        hb=net.head.bias,
    )


def to_xml(onnx_file: str) -> str:
    """The same network as OpenVINO's own file, beside it."""
    import openvino  # here, because machines that run the tests of GPUs need not have it

    path = str(Path(onnx_file).with_suffix(".xml"))
    openvino.save_model(openvino.Core().read_model(onnx_file), path, compress_to_fp16=False)
    return path


def classifier_files(folder: Path) -> dict[str, str]:
    """The classifier by suffix."""
    net = Classifier().eval()
    x = torch.rand(2, 3, 8, 9)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=(sizes,)), folder / "net.pt2")
    scripted = torch.jit.script(net)
    for suffix in ("pt", "pth", "ts", "jit"):
        scripted.save(str(folder / f"net.{suffix}"))
    file = onnx_classifier(folder / "net.onnx")
    if importlib.util.find_spec("openvino"):
        to_xml(file)
    return {path.suffix: str(path) for path in folder.iterdir() if path.suffix != ".bin"}


def pair_files(folder: Path) -> dict[str, str]:
    """SumAndDifference by suffix."""
    net = SumAndDifference()
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    rows = dict.fromkeys((0, 1), torch.export.Dim.AUTO)
    torch.export.save(torch.export.export(net, (a, b), dynamic_shapes=(rows, rows)), folder / "pair.pt2")
    torch.jit.script(net).save(str(folder / "pair.pt"))
    onnx_text(
        folder / "pair.onnx",
        "g (float[n,w] a, float[n,w] b) => (float[n,w] s, float[n,w] d) { s = Add(a, b) d = Sub(a, b) }",
    )
    return {path.suffix: str(path) for path in folder.iterdir()}

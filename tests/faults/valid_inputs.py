"""Valid pictures, arrays and models, small ones, and the tokens that mean something in each format."""

import io
import json
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

NPY_TOKENS = (b"(1000000000,)", b"'<i8'", b"'|O'", b"'<U9'", b"'<f4'", b"(-1, 8, 8)", b"()", b"True", b"PK\x03\x04")
YAML_TOKENS = (
    b"&a ", b"*a", b"!!python/object:os.system", b"!!binary x", b"!!timestamp 2026-13-45", b"? ", b"---\n", b"...\n",
    b"<<: ", b"\t", b": ", b"- ", b"\xff\xfe", b"[", b"]", b"{", b"}", b"|\n", b"2026-13-45", b"0x", b"1e999", b"'",
    b"%YAML 9.9\n", b"\xc2\x85", b"!!set {", b"!!omap ", b"!!float x", b"!!int x", b"1:99", b"!<tag> ", b"~",
)  # fmt: skip
JSON_TOKENS = (
    b"NaN",
    b"Infinity",
    b"1e999",
    b"[" * 5000,
    b"{",
    b"}",
    b'"\\ud800"',
    b"null",
    b"9" * 5000,
    b"-",
    b"\xff",
)
HTTP_TOKENS = (
    b"\r\n", b"\r\n\r\n", b"--cut", b"--cut--\r\n", b"filename*=utf-8''%ff", b"filename=", b"\0", b"\xff",
    b"transfer-encoding: chunked\r\n", b"content-length: 99999999999999999999\r\n", b"content-length: -1\r\n",
    b"expect: 100-continue\r\n", b"charset=utf-16", b"HTTP/9.9", b"upgrade: websocket\r\n",
    b"GET / HTTP/1.1\r\n\r\n", *JSON_TOKENS,
)  # fmt: skip
PNG_START = b"\x89PNG\r\n\x1a\n"


def npy_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def draw_seven(mode: str) -> Image.Image:
    image = Image.new("L", (40, 44), 255)
    ImageDraw.Draw(image).line([(8, 8), (30, 8), (14, 36)], 0, 5)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image, np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image, np.float32) / 255)
    return image.convert(mode)


def image_files() -> list[bytes]:
    """A small drawing in each format, mode and compression."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "RGB", {"save_all": True, "append_images": [draw_seven("RGB")]}),
        *(("JPEG", mode, {"exif": exif_bytes()}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", {"progressive": True}),
        ("GIF", "P", {}),
        ("GIF", "P", {"save_all": True, "append_images": [draw_seven("P")], "transparency": 1}),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        *(("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "F")),
        *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        ("TIFF", "1", {"compression": "group4"}),
        *(("PPM", mode, {}) for mode in ("1", "L", "RGB", "I;16")),
    ]
    return [encode_image(draw_seven(mode), file_format, options) for file_format, mode, options in kinds]


def exif_bytes() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    return exif.tobytes()


def encode_image(image: Image.Image, file_format: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def valid_png() -> bytes:
    return encode_image(draw_seven("L"), "PNG", {})


def repair_png(data: bytes) -> bytes:
    """The PNG with the right checksum of each chunk, so that the decoder looks at what is in it."""
    repaired, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunk = data[position + 4 : position + 8 + length]
        repaired += data[position : position + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        position += 12 + length
    return bytes(repaired)


def tiny_model() -> bytes:
    """An ONNX file as export_onnx writes it, of one matrix: 28 x 28 grey pixels, ten classes."""
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32) / 784
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10]) for name in ("logits", "probabilities")
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 28, 28])
    graph = helper.make_graph(nodes, "tiny", [image], outputs, [numpy_helper.from_array(matrix, "matrix")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    properties = {
        "classes": json.dumps(list("0123456789")),
        "input": json.dumps({"shape": ["batch", 1, 28, 28], "dtype": "uint8"}),
        "preparation": "mnist",
        "dataset": "mnist",
        "fit": "stretch",
    }
    helper.set_model_props(model, properties)
    return bytes(model.SerializeToString())

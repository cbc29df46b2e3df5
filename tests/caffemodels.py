"""Caffe's files, made of random weights: a small network's, and those of ZF of Faster R-CNN."""

import math
import re
import struct

import numpy as np
from fixtures import drawn

from refnet.arch import Arch, Conv, Dropout, Linear, Norm, Pool, Relu, SpatialNorm
from refnet.interop import caffe


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def field(number, value):
    """A field of protobuf: an integer, a float, or bytes of any message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array):
    shape = field(1, b"".join(map(varint, array.shape)))
    return field(7, field(7, shape) + field(5, np.ascontiguousarray(array, "<f4").tobytes()))


def layer(name, kind, bottoms, top, *more):
    parts = [field(1, name), field(2, kind), *(field(3, each) for each in bottoms), field(4, top), *more]
    return field(100, b"".join(parts))


def geometry(pad, size):
    return field(3, pad) + field(4, size)


CAFFE = Arch("caffe", (19, 19, 3), (
    Conv("conv1", 6, 5, stride=2, pad=1), Relu("relu1"), Norm("norm1", 5, 1.0, 0.2, 0.75), Pool("pool1"),
    Conv("conv2", 8, 3, pad=1, groups=2), Relu("relu2"), Linear("fc6", 12), Relu("relu6"), Dropout("drop6"),
    Linear("fc8", 5),
))  # fmt: skip


def caffemodel(p):
    """CAFFE as Caffe would store it, relus and dropout in place, with parameters p."""
    h, w, c = CAFFE.input_shapes()["fc6"]
    fc6 = p["fc6"]["w"].reshape(h, w, c, 12).transpose(3, 2, 0, 1).reshape(12, -1)
    conv = {name: blob(p[name]["w"].transpose(3, 2, 0, 1)) + blob(p[name]["b"]) for name in ("conv1", "conv2")}
    return b"".join([
        field(1, "caffe"), layer("data", "Data", [], "data"),
        layer("conv1", "Convolution", ["data"], "c1", field(106, geometry(1, 5) + field(6, 2)), conv["conv1"]),
        layer("relu1", "ReLU", ["c1"], "c1"),
        layer("norm1", "LRN", ["c1"], "n1", field(118, field(1, 5) + field(2, 1.0) + field(3, 0.75))),
        layer("pool1", "Pooling", ["n1"], "p1", field(121, field(1, 0) + field(2, 3) + field(3, 2))),
        layer("conv2", "Convolution", ["p1"], "c2", field(106, geometry(1, 3) + field(5, 2)), conv["conv2"]),
        layer("relu2", "ReLU", ["c2"], "c2"),
        layer("fc6", "InnerProduct", ["c2"], "f6", blob(fc6), blob(p["fc6"]["b"])),
        layer("relu6", "ReLU", ["f6"], "f6"), layer("drop6", "Dropout", ["f6"], "f6", field(108, field(1, 0.5))),
        layer("fc8", "InnerProduct", ["f6"], "f8", blob(p["fc8"]["w"].T), blob(p["fc8"]["b"])),
        layer("prob", "Softmax", ["f8"], "prob"),
    ])  # fmt: skip


PROTOTXT = 'name: "caffe"\ninput: "data"\ninput_dim: 1 # images\ninput_dim: 3\ninput_dim: 19\ninput_dim: 19\n'


def old(layers):
    """A .caffemodel's fields as they were in 2014: other numbers for the same, and numbers for kinds."""
    kinds = {
        b"Data": 5, b"Convolution": 4, b"ReLU": 18, b"LRN": 15, b"Pooling": 17, b"InnerProduct": 14, b"Dropout": 6,
        b"Softmax": 20,
    }  # fmt: skip
    numbers = {1: 4, 3: 2, 4: 3, 7: 6, 106: 10, 108: 12, 117: 17, 118: 18, 121: 19}
    made = b""
    for number, value in caffe._fields(layers):
        if number == 100:
            parts = [(5, kinds[v]) if n == 2 else (numbers[n], v) for n, v in caffe._fields(value)]
            number, value = 2, b"".join(field(n, v) for n, v in parts)
        made += field(number, value)
    return made


# ------------------------------------------------------------------------------------- ZF

# Numbers of fields in caffe.proto: a layer's messages of parameters, and what stands in each.
MESSAGES = {
    "convolution_param": (106, {"num_output": 1, "pad": 3, "kernel_size": 4, "stride": 6}),
    "lrn_param": (118, {"local_size": 1, "alpha": 2, "beta": 3, "norm_region": 4}),
    "pooling_param": (121, {"pool": 1, "kernel_size": 2, "stride": 3, "pad": 4}),
    "inner_product_param": (117, {"num_output": 1}),
}
ENUMS = {"MAX": 0, "WITHIN_CHANNEL": 1}


def conv_of(name, bottom, maps, size, pad, stride=1):
    how = {"num_output": maps, "kernel_size": size, "pad": pad, "stride": stride}
    return name, "Convolution", [bottom], [name], {"convolution_param": how}


def relu_of(name, blob):
    return name, "ReLU", [blob], [blob], {}


def norm_of(name, bottom):
    how = {"local_size": 3, "alpha": 5e-5, "beta": 0.75, "norm_region": "WITHIN_CHANNEL"}
    return name, "LRN", [bottom], [name], {"lrn_param": how}


def pool_of(name, bottom, pad=1):
    how = {"kernel_size": 3, "stride": 2, "pad": pad, "pool": "MAX"}
    return name, "Pooling", [bottom], [name], {"pooling_param": how}


def fc_of(name, bottom, units):
    return name, "InnerProduct", [bottom], [name], {"inner_product_param": {"num_output": units}}


# The layers, names and constants of ZF in the py-faster-rcnn repository (models/pascal_voc/ZF).
ZF = [
    conv_of("conv1", "data", 96, 7, 3, 2), relu_of("relu1", "conv1"), norm_of("norm1", "conv1"),
    pool_of("pool1", "norm1"),
    conv_of("conv2", "pool1", 256, 5, 2, 2), relu_of("relu2", "conv2"), norm_of("norm2", "conv2"),
    pool_of("pool2", "norm2"),
    conv_of("conv3", "pool2", 384, 3, 1), relu_of("relu3", "conv3"),
    conv_of("conv4", "conv3", 384, 3, 1), relu_of("relu4", "conv4"),
    conv_of("conv5", "conv4", 256, 3, 1), relu_of("relu5", "conv5"),
]  # fmt: skip
# As an ImageNet classifier, but with 32 units where it has 4096.
ZF_CLASSIFIER = [
    *ZF, pool_of("pool5", "conv5", pad=0),
    fc_of("fc6", "pool5", 32), relu_of("relu6", "fc6"), ("drop6", "Dropout", ["fc6"], ["fc6"], {}),
    fc_of("fc7", "fc6", 32), relu_of("relu7", "fc7"), fc_of("fc8", "fc7", 1000),
    ("prob", "Softmax", ["fc8"], ["prob"], {}),
]  # fmt: skip
# As a detector: proposals, and regions pooled from the same maps. Caffe stores the split that two readers need.
ZF_DETECTOR = [
    *ZF, ("conv5_relu5_0_split", "Split", ["conv5"], ["conv5_relu5_0_split_0", "conv5_relu5_0_split_1"], {}),
    conv_of("rpn_conv/3x3", "conv5_relu5_0_split_0", 256, 3, 1), relu_of("rpn_relu/3x3", "rpn_conv/3x3"),
    conv_of("rpn_cls_score", "rpn_conv/3x3", 18, 1, 0), conv_of("rpn_bbox_pred", "rpn_conv/3x3", 36, 1, 0),
    ("rpn_cls_score_reshape", "Reshape", ["rpn_cls_score"], ["rpn_cls_score_reshape"], {}),
    ("rpn_cls_prob", "Softmax", ["rpn_cls_score_reshape"], ["rpn_cls_prob"], {}),
    ("proposal", "Python", ["rpn_cls_prob", "rpn_bbox_pred", "im_info"], ["rois"], {}),
    ("roi_pool_conv5", "ROIPooling", ["conv5_relu5_0_split_1", "rois"], ["roi_pool_conv5"], {}),
    fc_of("fc6", "roi_pool_conv5", 32), fc_of("cls_score", "fc6", 21), fc_of("bbox_pred", "fc6", 84),
]  # fmt: skip


def prototxt(layers, inputs=("data",)):
    """The text of a network for images of 224; Caffe's own has no splits."""
    lines = ['name: "ZF"']
    for each in inputs:
        dims = (1, 3, 224, 224) if each == "data" else (1, 3)
        lines.append(f'input: "{each}"\ninput_shape {{ {" ".join(f"dim: {n}" for n in dims)} }}')
    for name, kind, bottoms, tops, messages in layers:
        if kind == "Split":
            continue
        read = [re.sub(r"_relu5_0_split_\d", "", each) for each in bottoms]
        blobs = [f'bottom: "{each}"' for each in read] + [f'top: "{each}"' for each in tops]
        more = [f"{key} {{ {' '.join(f'{k}: {v}' for k, v in how.items())} }}" for key, how in messages.items()]
        lines.append(f'layer {{ name: "{name}" type: "{kind}" {" ".join(blobs + more)} }}  # {kind}')
    return "\n".join(lines)


def stored(layers):
    """The bytes of a .caffemodel with random weights for the layers, and these weights in refnet's layouts."""
    shapes, weights = {"data": (224, 224, 3)}, {}
    # What a training leaves in the file: a layer without bottoms that reads images.
    messages = [field(1, "ZF"), layer("input-data", "Python", [], "data", field(4, "im_info"), field(4, "gt_boxes"))]
    for number, (name, kind, bottoms, tops, how) in enumerate(layers):
        h, w, c = shapes.get(bottoms[0], (6, 6, 256))
        parts, values = [], {key: value for each in how.values() for key, value in each.items()}
        if kind == "Convolution":
            size, pad, stride, m = (values[key] for key in ("kernel_size", "pad", "stride", "num_output"))
            wide = drawn((size, size, c, m), number, 9000) * math.sqrt(6 / (size * size * c))
            h, w, c = *((n + 2 * pad - size) // stride + 1 for n in (h, w)), m
        elif kind == "Pooling":
            h, w = (-(-(n + 2 * values["pad"] - 3) // 2) + 1 for n in (h, w))
        elif kind == "InnerProduct":
            wide = drawn((h * w * c, values["num_output"]), number, 9000) * math.sqrt(6 / (h * w * c))
        if kind in ("Convolution", "InnerProduct"):
            wide, bias = wide.astype("float32"), drawn(wide.shape[-1:], number, 9001).astype("float32")
            weights[name] = {"w": wide, "b": bias}
            if wide.ndim == 2:
                maps_first = wide.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(wide.shape[::-1])
                h, w, c = 1, 1, wide.shape[-1]
            else:
                maps_first = wide.transpose(3, 2, 0, 1)
            parts = [blob(maps_first), blob(bias)]
        shapes |= dict.fromkeys(tops, (h, w, c))
        for key, each in how.items():
            number_of, fields = MESSAGES[key]
            parts.append(field(number_of, b"".join(field(fields[k], ENUMS.get(v, v)) for k, v in each.items())))
        messages.append(layer(name, kind, bottoms, tops[0], *(field(4, each) for each in tops[1:]), *parts))
    return b"".join(messages), weights


def zf_arch(*more):
    """What ZF is here: alpha over the 9 cells' sum."""
    norm = {"size": 3, "alpha": float(str(np.float32(5e-5 / 9))), "beta": 0.75}
    return Arch("ZF", (224, 224, 3), (
        Conv("conv1", 96, 7, 2, 3), Relu("relu1"), SpatialNorm("norm1", **norm), Pool("pool1", pad=1),
        Conv("conv2", 256, 5, 2, 2), Relu("relu2"), SpatialNorm("norm2", **norm), Pool("pool2", pad=1),
        Conv("conv3", 384, 3, pad=1), Relu("relu3"), Conv("conv4", 384, 3, pad=1), Relu("relu4"),
        Conv("conv5", 256, 3, pad=1), Relu("relu5"), *more,
    ))  # fmt: skip

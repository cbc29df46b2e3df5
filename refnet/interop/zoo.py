"""torchvision's AlexNet, VGG and SqueezeNet as modules of torch: what imported state dicts are compared with.

Written from torchvision's own definitions and not from `refnet.interop.layouts`, which reads the state dicts; the names
of the tensors come from torch. torch is imported inside the functions, as everything else works without it.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # VGG's convolutions


def like(tensors: Mapping[str, Any]) -> Any:
    """The module in evaluation whose state dict this is; ValueError where it is of none of these networks."""
    weights = [each for key, each in tensors.items() if key.endswith(".weight")]
    shapes = [tuple(each.shape) for each in weights]
    convs = sum(len(shape) == 4 for shape in shapes)
    linear = [shape for shape in shapes if len(shape) == 2]
    if any(".squeeze." in key for key in tensors):
        made = squeezenet("1.0" if shapes[0][-1] == 7 else "1.1", shapes[-1][0])
    elif len(linear) == 3 and convs == 5:
        made = alexnet(linear[0][0], linear[-1][0])
    elif len(linear) == 3 and convs + 3 in _STAGES:
        normed = any(key.endswith(".running_mean") for key in tensors)
        made = vgg(convs + 3, linear[0][0], linear[-1][0], normed=normed)
    else:
        raise ValueError(f"{convs} convolutions and {len(linear)} linear layers make none of torchvision's networks")
    try:
        made.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(" ".join(f"its tensors are not torchvision's: {error}".split())[:200]) from None
    return made.eval()


def alexnet(hidden: int = 4096, classes: int = 1000) -> Any:
    """torchvision.models.alexnet."""
    from torch import nn

    features = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(256 * 6 * 6, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    return _classified(features, 6, classifier)


def vgg(depth: int = 11, hidden: int = 4096, classes: int = 1000, *, normed: bool = False) -> Any:
    """torchvision.models.vgg11 to vgg19, ``normed`` those with batch normalisation."""
    from torch import nn

    layers: list[Any] = []
    before = 3
    for count, maps in zip(_STAGES[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            norm = [nn.BatchNorm2d(maps)] if normed else []
            layers += [nn.Conv2d(before, maps, 3, padding=1), *norm, nn.ReLU()]
            before = maps
        layers.append(nn.MaxPool2d(2, 2))
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, classes),
    )  # fmt: skip
    return _classified(nn.Sequential(*layers), 7, classifier)


def squeezenet(version: str = "1.1", classes: int = 1000) -> Any:
    """torchvision.models.squeezenet1_0 ("1.0") and squeezenet1_1 ("1.1")."""
    from torch import nn

    fires = [_fire(*maps) for maps in (
        (64 if version == "1.1" else 96, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128), (256, 48, 192),
        (384, 48, 192), (384, 64, 256), (512, 64, 256),
    )]  # fmt: skip
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(3)]
    if version == "1.1":
        stem = nn.Conv2d(3, 64, 3, 2)
        rest = [*fires[:2], pools[1], *fires[2:4], pools[2], *fires[4:]]
    else:
        stem = nn.Conv2d(3, 96, 7, 2)
        rest = [*fires[:3], pools[1], *fires[3:7], pools[2], fires[7]]
    classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(OrderedDict(
        features=nn.Sequential(stem, nn.ReLU(), pools[0], *rest), classifier=classifier, flat=nn.Flatten(),
    ))  # fmt: skip


def _classified(features: Any, side: int, classifier: Any) -> Any:
    """Features, an average to a side, and fully connected layers."""
    from torch import nn

    average = nn.AdaptiveAvgPool2d(side)
    return nn.Sequential(OrderedDict(features=features, avgpool=average, flat=nn.Flatten(), classifier=classifier))


def _fire(maps: int, squeeze: int, expand: int) -> Any:
    from torch import Tensor, cat, nn

    class Fire(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.squeeze_activation = nn.Conv2d(maps, squeeze, 1), nn.ReLU()
            self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, expand, 1), nn.ReLU()
            self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.squeeze_activation(self.squeeze(x))
            paths = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
            return cat(paths, 1)

    return Fire()

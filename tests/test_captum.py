"""Projections against Captum's: its deconvolution and guided backprop start from 1, ours from the activation.

Captum sends the signal through normalisation's gradient and we don't; so the network is ZFNet without it.
"""

from dataclasses import replace

import numpy as np
import pytest
from conftest import oracle
from fixtures import assert_near, images_for, params_of

from refnet import models, net
from refnet.arch import Norm
from refnet.deconv import DECONV, GRADIENT, GUIDED, project, seeds

captum = oracle("captum.attr")
torchnet = oracle("torchnet")

ZFNET = replace(models.ZFNET, layers=tuple(layer for layer in models.ZFNET.layers if not isinstance(layer, Norm)))
METHODS = {
    "deconv": (DECONV, captum.NeuronDeconvolution),
    "guided": (GUIDED, captum.NeuronGuidedBackprop),
    "gradient": (GRADIENT, captum.NeuronGradient),
}


@pytest.fixture(scope="module")
def params():
    return params_of(ZFNET)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["pool2", "relu5", "fc8"])
def test_a_projection_is_captums_times_the_activation(params, layer, method):
    arch, x = ZFNET.upto(layer), images_for(ZFNET, 1)
    rules, attribution = METHODS[method]
    y, trace = net.forward(arch, params, x)
    assert y.max() > 0
    _, *place, m = np.unravel_index(y.argmax(), y.shape)
    r = project(trace, params, seeds(y, [0], [m], *([i] for i in place)), rules=rules)
    module = torchnet.build(arch, params)
    images = torchnet.nchw(x).requires_grad_()
    by_captum = attribution(module, module[-1]).attribute(images, (m, *place))
    assert_near(r, y.max() * torchnet.nhwc(by_captum), 1e-9)

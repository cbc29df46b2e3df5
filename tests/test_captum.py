"""Projections against Captum's: its deconvolution and guided backprop start from 1, ours from the activation."""

import pytest
from conftest import oracle
from fixtures import assert_near, images_for, params_of, strongest_cell, without_norm

from refnet import models, net
from refnet.deconv import DECONV, GRADIENT, GUIDED, project, seeds

oracle("captum")
torchnet = oracle("torchnet")

ZFNET = without_norm(models.ZFNET)
RULES = {"NeuronDeconvolution": DECONV, "NeuronGuidedBackprop": GUIDED, "NeuronGradient": GRADIENT}


@pytest.fixture(scope="module")
def params():
    return params_of(ZFNET)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning")
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("layer", ["pool2", "relu5", "fc8"])
def test_a_projection_is_captums_times_the_activation(params, layer, method):
    arch, x = ZFNET.upto(layer), images_for(ZFNET, 1)
    y, trace = net.forward(arch, params, x)
    *place, m = cell = strongest_cell(y)
    assert y[0, *cell] > 0
    r = project(trace, params, seeds(y, [0], [m], *([i] for i in place)), rules=RULES[method])
    assert_near(r, y[0, *cell] * torchnet.attribution(method, arch, params, x, cell), 1e-9)

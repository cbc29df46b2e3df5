"""What test_torch_parity and test_captum say, for two small networks, where neither PyTorch nor Captum is installed."""

import pytest
from fixtures import (
    ANSWERED,
    PROJECTED,
    answers,
    assert_near,
    batches_for,
    case_of,
    drawn,
    flat,
    params_of,
    projected_case,
    strongest_cell,
    train,
)

from refnet import net
from refnet.deconv import RULES, project, seeds


def test_numbers_are_drawn_as_they_were_when_the_file_was_written():
    assert drawn((2, 2), 1, 2).tolist() == [
        [-0.1031697133354561, -0.1382360249113248],
        [-0.1600017412156156, -0.44595324661373636],
    ]


@pytest.mark.parametrize("name", ANSWERED)
def test_logits_and_all_gradients_are_pytorchs(name):
    arch, params, x, dy = case_of(name)
    y, trace = net.forward(arch, params, x)
    dx, grads = net.backward(trace, params, dy)
    got = flat({"y": y, "dx": dx, "grads": grads}, name)
    expected = answers(f"{name}/y") | answers(f"{name}/dx") | answers(f"{name}/grads/")
    assert_near(got, expected, 1e-10)


@pytest.mark.parametrize("name", ANSWERED)
def test_20_sgd_steps_end_at_pytorchs_weights(name):
    arch, params = ANSWERED[name], params_of(ANSWERED[name])
    clipped = train(arch, params, batches_for(arch, 2))
    assert_near(flat(params, f"{name}/trained"), answers(f"{name}/trained/"), 1e-8)
    assert sum(clipped[1:]) > 0


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layers in PROJECTED.items() for layer in layers])
def test_a_projection_is_captums_times_the_activation(name, layer, rules):
    _, params, _ = case = projected_case(name, layer)
    y, trace = net.forward(*case)
    *place, m = cell = strongest_cell(y)
    assert y[0, *cell] > 0
    r = project(trace, params, seeds(y, [0], [m], *([i] for i in place)), rules=RULES[rules])
    got = flat(r / y[0, *cell], f"{name}/{rules}/{layer}")
    assert_near(got, answers(f"{name}/{rules}/{layer}"), 1e-9)


def test_the_file_is_small():
    assert sum(a.nbytes for a in answers("").values()) < 300_000

"""Writes tests/fixtures/answers.npz: what PyTorch and Captum make of two networks, for machines that lack them.

    python tests/make_fixtures.py

Parameters, images and signals are not in it: fixtures/__init__.py draws them again, and test_fixtures.py compares.
"""

import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torchnet
from fixtures import ANSWERED, PROJECTED, RECIPE, batches_for, case_of, flat, params_of, projected_case, strongest_cell

from refnet import net

METHODS = {"deconv": "NeuronDeconvolution", "guided": "NeuronGuidedBackprop", "gradient": "NeuronGradient"}


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
    content = {}
    for name, arch in ANSWERED.items():
        y, dx, grads = torchnet.run(*case_of(name))
        trained = torchnet.train(arch, params_of(arch), batches_for(arch, 2), **RECIPE)
        content |= flat({"y": y, "dx": dx, "grads": grads, "trained": trained}, name)
        for layer in PROJECTED[name]:
            case = projected_case(name, layer)
            cell = strongest_cell(net.predict(*case))  # where to look; what is seen there is Captum's
            for rules, method in METHODS.items():
                content |= flat(torchnet.attribution(method, *case, cell), f"{name}/{rules}/{layer}")
    path = Path(__file__).parent / "fixtures" / "answers.npz"
    np.savez(path, **content)
    print(f"{path}: {len(content)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

"""Weights from other frameworks and to them: one file per foreign format.

A reader makes a `refnet.interop.graph.Network` of a file: layers, parameters in refnet's layouts, and what the source
calls each layer's output. `refnet.interop.conventions` makes a checkpoint of that, once it is declared what the
network's inputs are. Nothing that a file holds is ever executed.
"""

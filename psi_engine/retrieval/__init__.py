"""Neurons by text, by example neuron or by image, over the cluster prototypes of runs."""

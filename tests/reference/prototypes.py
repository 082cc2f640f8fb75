"""Cluster prototypes by the letter: one channel, one cluster, one patch at a time, in float64."""

import math


def prototypes(z, assignments, channels):
    """(channel, cluster, unit mean) of each cluster, in that order."""
    found = []
    for c, channel in enumerate(channels):
        for cluster in sorted(set(assignments[c]) - {-1}):
            total = [0.0] * len(z[c][0])
            for patch, own in enumerate(assignments[c]):
                if own != cluster:
                    continue
                norm = math.sqrt(sum(x * x for x in z[c][patch]))
                for axis, x in enumerate(z[c][patch]):
                    total[axis] += x / norm
            length = math.sqrt(sum(x * x for x in total))
            found.append((channel, cluster, [x / length for x in total]))
    return found

"""Cluster prototypes by the letter: one channel, one cluster, one patch at a time, in float64."""

import math


def prototypes(z, assignments, channels):
    """(channel, cluster, unit mean, length of the mean) of each cluster, in that order."""
    found = []
    for c, channel in enumerate(channels):
        for cluster in sorted(set(assignments[c]) - {-1}):
            total, members = [0.0] * len(z[c][0]), 0
            for patch, own in enumerate(assignments[c]):
                if own != cluster:
                    continue
                members += 1
                norm = math.sqrt(sum(x * x for x in z[c][patch]))
                for axis, x in enumerate(z[c][patch]):
                    total[axis] += x / norm
            mean = [x / members for x in total]
            length = math.sqrt(sum(x * x for x in mean))
            found.append((channel, cluster, [x / length for x in mean], length))
    return found

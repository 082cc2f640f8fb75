"""Patches: what a unit sees (its receptive field), the box of each site, the crops."""

from psi_engine.ops.crops import crop_and_resize
from psi_engine.patches.boxes import collect_patches, site_boxes
from psi_engine.patches.field import receptive_field

__all__ = ["collect_patches", "crop_and_resize", "receptive_field", "site_boxes"]

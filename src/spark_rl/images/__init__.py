"""Images: references to them, and the pictures behind these."""

from spark_rl.images.read import open_image, reference

__all__ = ["open_image", "reference"]

"""Images: references to them, and the pictures behind these."""

from spark_rl.images.decode import ImageError
from spark_rl.images.read import held, named, open_image, reference

__all__ = ["ImageError", "held", "named", "open_image", "reference"]

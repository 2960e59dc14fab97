"""Images: references to them, and the pictures behind these."""

from spark_rl.images.decode import ImageError
from spark_rl.images.read import blank, held, named, open_image, reference

__all__ = ["ImageError", "blank", "held", "named", "open_image", "reference"]

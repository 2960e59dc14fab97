"""Images: references to them, and the pictures behind these."""

from spark_rl.images.decode import ImageError, shrunk, suffix_of
from spark_rl.images.read import blank, from_data_url, held, named, open_image, reference

__all__ = ["ImageError", "blank", "from_data_url", "held", "named", "open_image", "reference", "shrunk", "suffix_of"]

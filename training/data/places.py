"""From a place on disk to its pictures: a folder, WebDataset tars or a data set of Hugging Face."""

from pathlib import Path

from training.data.examples import ImageSource
from training.data.hugging_face import is_saved_dataset, list_dataset
from training.data.image_folder import holds_pictures, list_folder
from training.data.listing import Listing, load_listing
from training.data.webdataset import list_shards, shards_of


def load_pictures(
    place: Path, size_px: int | None = None, *, memory_mib: int = 1024, broken_share: float = 0.01
) -> ImageSource:
    """The pictures there, as `load_listing` gives them. Raises DataError."""
    return load_listing(list_pictures(place), size_px, memory_mib=memory_mib, broken_share=broken_share)


def list_pictures(place: Path) -> Listing:
    """What is there, told by its files, with no picture opened. Raises DataError."""
    if is_saved_dataset(place):
        return list_dataset(place)
    if shards_of(place) and (place.is_file() or not holds_pictures(place)):
        return list_shards(place)
    return list_folder(place)

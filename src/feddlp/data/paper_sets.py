"""The paper's four data sets, from the archives of their authors or from the folders to which these unpack.

pets      Oxford-IIIT Pet (Parkhi et al. 2012)       images/, annotations/trainval.txt, test.txt
flowers   Oxford 102 Flower (Nilsback 2008)          jpg/, imagelabels.mat, setid.mat
aircraft  FGVC-Aircraft 2013b (Maji et al. 2013)     data/images/, data/images_variant_train.txt, ...
dtd       Describable Textures (Cimpoi et al. 2014)  images/, labels/train1.txt, val1.txt, test1.txt
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from feddlp.data.archives import unpacked
from feddlp.data.csv_tables import PARTS
from feddlp.data.folders import is_folder, list_folder
from feddlp.data.pictures import PictureFile
from feddlp.data.source import Part, Source
from feddlp.errors import UserError
from feddlp.files import read_given
from feddlp.names import nfc

TEMPLATES = {
    "pets": "a photo of a {}, a type of pet.",
    "flowers": "a photo of a {}, a type of flower.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "a photo of a {} texture.",
}
"""The prompts of the paper's data sets (public code)."""

FLOWERS = (
    "pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold", "tiger lily",
    "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot", "king protea",
    "spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily", "balloon flower",
    "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger", "grape hyacinth",
    "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william", "carnation",
    "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya", "cape flower",
    "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily", "poinsettia",
    "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion", "petunia",
    "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium", "orange dahlia",
    "pink-yellow dahlia", "cautleya spicata", "japanese anemone", "black-eyed susan", "silverbush",
    "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower", "tree poppy", "gazania",
    "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower", "lotus", "toad lily",
    "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose", "tree mallow", "magnolia",
    "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss", "foxglove", "bougainvillea",
    "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower", "trumpet creeper", "blackberry lily",
)  # fmt: skip
"""Class i + 1 of imagelabels.mat; the archives bring numbers only."""

ARCHIVES = {
    "pets": ("images.tar*", "annotations.tar*"),
    "flowers": ("102flowers.t*",),
    "aircraft": ("fgvc-aircraft*.tar*",),
    "dtd": ("dtd*.tar*",),
}
"""As they are called where they are published."""


Entry = tuple[Path, str, Part]
"""One image of an official list, and its class."""


def pets(argument: str) -> Source:
    """pets:PATH, Oxford-IIIT Pet as published: 37 breeds; PATH holds images/ and annotations/."""
    root = find_root("pets", argument, ("images", "annotations/trainval.txt", "annotations/test.txt"))
    listed = read_lists(root / "annotations", {"trainval": "train", "test": "test"})
    breeds = [(image, image.rpartition("_")[0].replace("_", " "), part) for part, image, _ in listed]
    return assemble("pets", [(root / "images" / f"{image}.jpg", breed, part) for image, breed, part in breeds])


def flowers(argument: str) -> Source:
    """flowers:PATH, Oxford 102 Flower as published; PATH holds jpg/, imagelabels.mat and setid.mat."""
    root = find_root("flowers", argument, ("jpg", "imagelabels.mat", "setid.mat"))
    numbers = read_matrix(root / "imagelabels.mat", "labels", len(FLOWERS))
    sets: dict[str, Part] = {"trnid": "train", "valid": "validation", "tstid": "test"}
    rows = [
        (root / "jpg" / f"image_{image:05d}.jpg", FLOWERS[numbers[image - 1] - 1], part)
        for name, part in sets.items()
        for image in read_matrix(root / "setid.mat", name, len(numbers))
    ]
    return assemble("flowers", rows, FLOWERS)


def aircraft(argument: str) -> Source:
    """aircraft:PATH, FGVC-Aircraft 2013b as published, at the level of its 100 variants; PATH holds data/."""
    root = find_root("aircraft", argument, ("images", "variants.txt", "images_variant_train.txt"))
    listed = read_lists(root, {f"images_variant_{name}": PARTS[name] for name in ("train", "val", "test")})
    rows = [(root / "images" / f"{image}.jpg", " ".join(variant), part) for part, image, variant in listed]
    return assemble("aircraft", rows, [" ".join(words) for words in read_list(root / "variants.txt")])


def dtd(argument: str) -> Source:
    """dtd:PATH, Describable Textures as published: 47 textures, the first split; PATH holds images/ and labels/."""
    root = find_root("dtd", argument, ("images", "labels/train1.txt"))
    listed = read_lists(root / "labels", {"train1": "train", "val1": "validation", "test1": "test"})
    textures = [(image, image.partition("/")[0].replace("_", " "), part) for part, image, _ in listed]
    return assemble("dtd", [(root / "images" / image, texture, part) for image, texture, part in textures])


def assemble(name: str, entries: Sequence[Entry], class_names: Sequence[str] = ()) -> Source:
    """A source from the official lists; classes by name where no order is given."""
    order = tuple(map(nfc, class_names or sorted({class_name for _, class_name, _ in entries}, key=str.lower)))
    place = {class_name: label for label, class_name in enumerate(order)}
    return Source(
        name,
        [place[nfc(class_name)] for _, class_name, _ in entries],
        order,
        TEMPLATES[name],
        pictures=[PictureFile(file) for file, _, _ in entries],
        parts=[part for _, _, part in entries],
    )


def find_root(name: str, argument: str, needed: tuple[str, ...]) -> Path:
    """The folder that holds what the archives bring: the given one, one inside of it, or one in the cache.

    Raises:
        UserError: that says what is missing.
    """
    if not argument:
        raise UserError(f"data.dataset={name} needs the folder of its archives; write data.dataset={name}:PATH")
    given = Path(argument).expanduser()
    folder = given.parent if given.is_file() else given
    if root := root_within(folder, needed):
        return root
    found = [sorted(filter(Path.is_file, folder.glob(pattern)), key=published_first)[:1] for pattern in ARCHIVES[name]]
    archives = [archive for first in found for archive in first]
    if len(archives) == len(ARCHIVES[name]):
        beside = [folder / file for file in needed if (folder / file).is_file()]
        if root := root_within(unpacked(archives, beside), needed):
            return root
    missing = [file for file in needed if not exists(folder / file)]
    raise UserError(
        f"data.dataset={name}:{argument} has no {', '.join(missing)}; give the folder with the archives as they are "
        f"published ({', '.join(ARCHIVES[name])}), or the one they were unpacked to"
    )


def root_within(folder: Path, needed: tuple[str, ...]) -> Path | None:
    """The folder, one inside of it, or the folder data inside of that."""
    inside = [entry for entry in list_folder(folder) if is_folder(entry)] if is_folder(folder) else []
    candidates = (folder, *inside, *(place / "data" for place in inside))
    return next((root for root in candidates if all(exists(root / file) for file in needed)), None)


def published_first(archive: Path) -> tuple[bool, str]:
    """An order: what is called as published before a copy packed otherwise, and before images.tar.gz.part."""
    return not archive.name.endswith((".tar.gz", ".tgz")), archive.name


def exists(path: Path) -> bool:
    """False where nobody may look; `Path.exists` raises there."""
    return os.path.exists(path)  # noqa: PTH110


def read_lists(folder: Path, lists: Mapping[str, Part]) -> list[tuple[Part, str, list[str]]]:
    """The first word and the other words of each line of official lists, with the part that each list is of."""
    named = [(part, read_list(folder / f"{name}.txt")) for name, part in lists.items()]
    return [(part, first, others) for part, lines in named for first, *others in lines]


def read_list(file: Path) -> Iterator[list[str]]:
    """The words of each line; empty lines and comments left out."""
    try:
        lines = read_given(file).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.dataset: cannot read {file} ({error}); unpack the archive again") from error
    return (line.split() for line in lines if line.strip() and not line.startswith("#"))


def read_matrix(file: Path, key: str, highest: int) -> list[int]:
    """One row of numbers, from 1 to the highest, out of a MATLAB file."""
    from scipy.io import loadmat

    try:
        numbers = [int(value) for value in loadmat(io.BytesIO(read_given(file)))[key].flatten()]
    except Exception as error:  # SciPy raises several kinds for a damaged file
        raise UserError(f"data.dataset: cannot read {key} from {file} ({error}); download it again") from error
    if strange := [number for number in numbers if not 1 <= number <= highest]:
        raise UserError(
            f"data.dataset: {key} in {file} has the number {strange[0]}, which is not in 1 to {highest}; "
            "download it again"
        )
    return numbers


PAPER_SETS = {"pets": pets, "flowers": flowers, "aircraft": aircraft, "dtd": dtd}

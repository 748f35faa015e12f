"""Options and places of the known/unknown splits, and the toy world's in their stead."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_openset.splitting import COURSE_CLASSES, Rules
from shared.options import DATA_ROOT, OUTPUTS, ToyOptions, UserError

DEFAULT_DATA = DATA_ROOT / "coco2017"
TOY_DATA = DATA_ROOT / "toy" / "coco2017"
DEFAULT_SPLIT = OUTPUTS / "llava_openset" / "split"
TOY_SPLIT = OUTPUTS / "llava_openset" / "toy_split"


@dataclass
class SourceOptions:
    """COCO 2017"""

    data_root: str = field(
        default=str(DEFAULT_DATA), metadata={"help": "folder with annotations/ and the pictures"}
    )
    split: str = field(
        default="val2017", metadata={"help": "val2017, or train2017, which the course drew from"}
    )
    annotations: str | None = field(
        default=None,
        metadata={"help": "instances file; default: annotations/instances_{split}.json"},
    )
    images_root: str | None = field(
        default=None, metadata={"help": "folder of its pictures; default: {data_root}/{split}"}
    )


@dataclass
class ClassOptions:
    """Known and unknown classes"""

    known_classes: list[str] | None = field(
        default=None,
        metadata={"help": f"names, two words in quotes; default: {', '.join(COURSE_CLASSES)}"},
    )
    known_count: int = field(
        default=0,
        metadata={
            "help": "instead: so many drawn by --seed from all classes, the rest is unknown (20, "
            "40 and 60 of 80: the splits 20/60, 40/40, 60/20); 0: by --known_classes"
        },
    )
    unknown_classes: list[str] | None = field(
        default=None, metadata={"help": "names; default: every class that is not known"}
    )


@dataclass
class SampleOptions:
    """Samples"""

    unit: Literal["image", "crop"] = field(
        default="image",
        metadata={"help": "a whole picture with one evident main object, or an object cut out"},
    )
    min_area_share: float = field(
        default=0.1,
        metadata={"help": "image: how much of the picture the main object's mask covers at least"},
    )
    max_other_share: float = field(
        default=0.05,
        metadata={"help": "how much of the picture or crop any other class covers at most"},
    )
    context: float = field(
        default=0.15, metadata={"help": "crop: share of the box's sides added on each side"}
    )
    min_side: int = field(
        default=64, metadata={"help": "crop: pixels of the box's shorter side at least"}
    )
    mixed: Literal["keep", "drop"] = field(
        default="keep",
        metadata={
            "help": "known samples that show an unknown object too, within --max_other_share; an "
            "unknown sample never shows a known class"
        },
    )
    n_per_class: int = field(default=20, metadata={"help": "test samples of a known class"})
    validation_per_class: int = field(
        default=10, metadata={"help": "more of them, from other pictures, to choose thresholds"}
    )
    unknown_total: int | None = field(
        default=None,
        metadata={
            "help": "unknown test samples, the classes in turn; default: as many as known, or "
            "--unknown_per_class of each; 0: none but your own pictures"
        },
    )
    unknown_per_class: int | None = field(
        default=None, metadata={"help": "test samples of an unknown class at most"}
    )
    min_per_class: int = field(
        default=5, metadata={"help": "fewer test samples of a known class than this are an error"}
    )
    seed: int = field(default=0, metadata={"help": "order of the pictures, drawn classes"})


@dataclass
class SplitOptions(SampleOptions, ClassOptions, SourceOptions, ToyOptions):
    """Output"""

    output_dir: str = field(
        default=str(DEFAULT_SPLIT), metadata={"help": "folder that the split becomes"}
    )

    def __post_init__(self) -> None:
        self.rules()
        if (self.annotations is None) != (self.images_root is None):
            raise UserError("--annotations and --images_root name one set: give both or neither")
        if self.known_count < 0:
            raise UserError(f"--known_count {self.known_count}: at least 1, or 0 for a list")
        if self.known_count and self.unknown_classes:
            raise UserError("with --known_count every other class is unknown: no --unknown_classes")

    def rules(self) -> Rules:
        return Rules(
            **{name: getattr(self, name) for name in Rules.__dataclass_fields__},
        )

    def places(self) -> tuple[Path, Path]:
        """The annotation file and the folder of its pictures."""
        if self.annotations is not None and self.images_root is not None:
            return Path(self.annotations), Path(self.images_root)
        root = Path(self.data_root)
        return root / "annotations" / f"instances_{self.split}.json", root / self.split


def toy_defaults() -> dict[str, Any]:
    """The toy COCO's known shapes against the held-back ones; shapes are small in its pictures."""
    from shared.toy_world.shapes import KNOWN_SHAPES

    return {
        "data_root": str(TOY_DATA),
        "known_classes": list(KNOWN_SHAPES),
        "min_area_share": 0.03,
        "max_other_share": 0.015,
        "context": 0.4,  # the toy towers know shapes of a third to half the picture's side
        "min_side": 12,
        "unknown_per_class": 20,
        "output_dir": str(TOY_SPLIT),
    }


def prepare_toy_data() -> None:
    """Draws the toy COCO (about five seconds, once)."""
    from shared.toy_world.coco import ensure_coco

    ensure_coco(TOY_DATA)
